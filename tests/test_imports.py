"""The floors of the house, and how little ``import nimbus_sd`` loads."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, cwd=REPOSITORY
    ).stdout


def test_imports_only_go_down_the_stairs():
    pytest.importorskip("importlinter", reason="import-linter is in the dependency group 'lint'")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_importing_the_package_loads_nothing_heavy():
    loaded = python(
        "import sys, nimbus_sd; print('\\n'.join({m.split('.')[0] for m in sys.modules}))"
    ).split()
    heavy = {
        "torch",
        "spatialdata",
        "anndata",
        "pandas",
        "numpy",
        "dask",
        "xarray",
        "zarr",
        "scanpy",
        "squidpy",
        "matplotlib",
    }
    assert "nimbus_sd" in loaded
    assert not heavy & set(loaded)


@pytest.mark.parametrize("room", ["pp", "tl", "pl", "io", "datasets", "models", "app"])
def test_a_room_is_entered_without_its_furniture(room):
    loaded = python(f"import sys, nimbus_sd; nimbus_sd.{room}; print('\\n'.join(sys.modules))").split()
    assert f"nimbus_sd.{room}" in loaded
    assert not {"torch", "spatialdata", "squidpy", "matplotlib"} & set(loaded)


def test_the_engine_runs_where_no_scverse_is_installed():
    code = """
import sys
for name in "anndata spatialdata scanpy squidpy xarray pandas zarr skimage matplotlib tifffile".split():
    sys.modules[name] = None  # any import of it fails
import numpy as np
import nimbus_sd.simulation
from nimbus_sd.engine.predict import PredictConfig, Predictor
from nimbus_sd.engine.source import ArrayImage, ArrayLabels, Sample
from nimbus_sd.models import ModelCard, UNet, UNetConfig
from nimbus_sd.models.loading import LoadedModel
model = LoadedModel(UNet(UNetConfig(width=2)).eval(), ModelCard("tiny"))
image, labels = np.ones((1, 40, 40), np.uint8), np.ones((40, 40), np.uint8)
sample = Sample("cells", ArrayImage("i", image, ("a",)), ArrayLabels("l", labels), 1.0)
print(Predictor(model, PredictConfig(device="cpu")).run(sample, ["a"], np.ones(1)).count)
"""
    assert python(code).strip() == "[1600]"


def test_what_does_not_compute_with_torch_runs_without_it():
    code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
import warnings
warnings.simplefilter("ignore")
import nimbus_sd as nb
for room in (nb.io, nb.datasets, nb.pl, nb.app):
    [getattr(room, name) for name in dir(room)]
nb.pp.normalization, nb.pp.integrated_expression, nb.pp.gate, nb.tl.flowsom, nb.tl.phenotype, nb.tl.evaluate
"""
    python(code)


def test_unknown_names_list_the_known():
    code = """
import nimbus_sd
for owner, name in [(nimbus_sd, "predict"), (nimbus_sd.tl, "predikt")]:
    try:
        getattr(owner, name)
    except AttributeError as error:
        print(error)
print(dir(nimbus_sd), dir(nimbus_sd.tl))
"""
    out = python(code)
    assert "no attribute 'predict'; valid: __version__, app, datasets" in out
    assert "no attribute 'predikt'; valid: " in out
    assert "'predict'" in out.splitlines()[-1]


def test_a_missing_extra_names_its_install_line():
    from nimbus_sd._core.errors import MissingExtraError
    from nimbus_sd._core.lazy import require

    assert require("json", extra="train").dumps([1]) == "[1]"
    with pytest.raises(MissingExtraError, match=r'pip install -c constraints\.txt "nimbus-sd\[train\]"'):
        require("no_such_module", extra="train")
