"""``nimbus-sd doctor``: all well here, and whatever is broken is named without hiding the rest."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

from nimbus_sd.cli import _probes, _requirements
from nimbus_sd.cli._checkup import Checkup
from nimbus_sd.cli.doctor import examine


@pytest.fixture(scope="module")
def healthy():
    return examine()


def test_this_machine_is_well(healthy):
    assert not healthy.problems, healthy.problems
    facts = healthy.to_dict()
    assert facts["ok"]
    assert facts["packages"]["torch"] == importlib.metadata.version("torch")
    assert set(_probes.IMPORTED) == set(facts["imports"])
    cpu = facts["precision"]["cpu"]
    assert cpu["auto"] in ("float32", "bfloat16")
    assert cpu["largest_difference"]["float32"] < 1e-5
    assert facts["prediction"]["nimbus-sd-s"]["n_cells"] > 10
    assert facts["weights"]["nimbus-sd-s"] is True
    json.dumps(facts)
    lines = healthy.lines()
    assert "all well" in lines[-1]
    assert max(map(len, lines)) < 200


def test_the_program_ends_with_1_if_something_is_wrong(nimbus, monkeypatch):
    module = sys.modules[examine.__module__]  # the package's attribute of that name is the command
    for wrong in ([], [("torch is missing", "pip install torch")]):
        monkeypatch.setattr(module, "examine", lambda wrong=wrong: Checkup(problems=list(wrong)))
        code, out, _ = nimbus("doctor")
        assert code == bool(wrong)
        assert ("1. torch is missing\n     pip install torch" in out) == bool(wrong)
        code, out, _ = nimbus("doctor", "--json")
        assert (code, json.loads(out)["ok"]) == (bool(wrong), not wrong)


@pytest.mark.parametrize("broken", ["torch", "spatialdata"])
def test_a_broken_package_is_named_and_the_rest_is_still_looked_at(broken, tmp_path):
    (tmp_path / f"{broken}.py").write_text("raise ImportError('undefined symbol: odd')\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['nimbus-sd', 'doctor', '--json']\n"
        "from nimbus_sd.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert any("undefined symbol: odd" in p["what"] and broken in p["what"] for p in found["problems"])
    assert all(p["do"] for p in found["problems"])
    assert {"packages", "imports", "disk", "weights"} <= set(found)
    assert isinstance(found["imports"]["numpy"], float)
    assert found["disk"]["cache"]["path"]


def _declare(monkeypatch, *needs, installed):
    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(_requirements, "requires", lambda name: list(needs) if name == "nimbus-sd" else [])
    monkeypatch.setattr(_requirements, "version", version)
    checkup = Checkup()
    _requirements.look_at_packages(checkup)
    return checkup


def test_missing_and_old_packages_are_wrong_missing_extras_a_note(monkeypatch):
    needs = [
        "numpy>=2",
        "pynndescent!=0.7.0",
        "torch>=2.6",
        "absent>=1",
        'flowsom>=0.2.2; extra == "flowsom"',
    ]
    needs += ['uvicorn>=0.30; extra == "review"', 'winonly>=1; sys_platform == "none"']
    installed = {"numpy": "1.26.4", "pynndescent": "0.7.0", "torch": "2.13.0+cpu", "uvicorn": "0.20"}
    checkup = _declare(monkeypatch, *needs, installed=installed)
    said = [what for what, _ in checkup.problems]
    assert [text.split()[0] for text in said] == ["numpy", "pynndescent", "absent", "uvicorn"]
    assert "sc.pp.neighbors" in said[1]
    assert checkup.problems[0][1] == 'pip install "numpy>=2"'
    assert checkup.notes == ['the extra "flowsom" is not installed: pip install "nimbus-sd[flowsom]"']
    assert "winonly" not in checkup.facts["packages"]


def test_a_package_needed_with_an_extra_brings_the_extras_packages(monkeypatch):
    needs = {"nimbus-sd": ["dask[distributed]>=1"], "dask": ['distributed>=2; extra == "distributed"', "x"]}
    monkeypatch.setattr(_requirements, "requires", needs.get)
    monkeypatch.setattr(_requirements, "version", lambda name: "1.5")
    found = {f.name: f.fits for f in _requirements.declared()}
    assert found == {"dask": True, "distributed": False}


def test_a_changed_weight_file_is_wrong(monkeypatch):
    monkeypatch.setattr("nimbus_sd.models.loading.sha256", lambda path: "0" * 64)
    checkup = Checkup()
    _probes.look_at_weights(checkup)
    ((what, do),) = checkup.problems
    assert "its hash is not the card's" in what
    assert "install" in do


def test_a_cache_that_can_not_be_written_to_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("NIMBUS_SD_CACHE", str(tmp_path / "cache"))

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_probes.tempfile, "TemporaryFile", refuse)
    checkup = Checkup()
    _probes.look_at_cache(checkup)
    assert "Permission denied" in checkup.problems[0][0]
    assert "NIMBUS_SD_CACHE" in checkup.problems[0][1]


@pytest.mark.parametrize(
    ("cuda", "driver", "wrong"), [(None, True, "for CPUs only"), ("12.8", True, "no usable GPU")]
)
def test_a_gpu_that_torch_does_not_use_is_wrong(monkeypatch, cuda, driver, wrong):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(_probes.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(sys, "platform", "linux")
    checkup = Checkup()
    _probes.look_at_machine(checkup)
    assert wrong in checkup.problems[0][0]


def test_a_cuda_build_without_a_gpu_and_an_offline_hub_are_notes(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(_probes.shutil, "which", lambda name: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checkup = Checkup()
    _probes.look_at_machine(checkup)
    _probes.look_at_weights(checkup)
    assert not checkup.problems
    assert any("finds no GPU" in note for note in checkup.notes)
    assert any("HF_HUB_OFFLINE" in note for note in checkup.notes)


def test_a_probe_that_fails_is_a_finding():
    checkup = Checkup()

    def look(_):
        msg = "no kernel\nimage"
        raise RuntimeError(msg)

    checkup.probe("precision", "cuda:0", "pass --device cpu", look)
    checkup.say("after", "it", "goes on")
    assert checkup.problems == [("precision, cuda:0: RuntimeError: no kernel image", "pass --device cpu")]
    assert "goes on" in "\n".join(checkup.lines())


def test_a_precision_that_a_device_lacks_is_a_note_and_wrong_numbers_are_wrong(monkeypatch):
    from nimbus_sd.engine import device

    monkeypatch.setattr(device, "resolve_precision", lambda precision, where: "float32")
    right, checkup = _probes._forward, Checkup()

    def forward(torch, net, image):
        if image.dtype == torch.bfloat16:
            msg = "not implemented for BFloat16"
            raise RuntimeError(msg)
        return right(torch, net, image)

    monkeypatch.setattr(_probes, "_forward", forward)
    _probes.look_at_precision(checkup, "cpu")
    assert not checkup.problems
    assert checkup.notes == ["cpu can't compute in bfloat16 (RuntimeError)"]
    passes = []

    def drift(torch, net, image):
        passes.append(image)
        found, seconds = right(torch, net, image)
        return found + (len(passes) > 1), seconds

    monkeypatch.setattr(_probes, "_forward", drift)
    _probes.look_at_precision(checkup, "cpu")
    assert "probabilities in float32 differ by 1" in checkup.problems[0][0]
