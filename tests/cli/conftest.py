"""The program in this process, and small stores for it to work on."""

import json
import shutil
import sys
import warnings

import pytest

from nimbus_sd import cli, datasets, tl

CHANNELS = ["HH3", "CD3", "CD20", "PanCK"]


@pytest.fixture
def nimbus(monkeypatch, capsys):
    """Exit code, stdout and stderr of ``nimbus-sd`` with these arguments."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nimbus-sd", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def facts(nimbus):
    """What a call with --json prints, which must be one JSON object and nothing else."""

    def run(*arguments):
        code, out, err = nimbus(*arguments, "--json")
        assert code == 0, err
        assert out.count("\n") == 1
        found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert isinstance(found, dict)
        return found

    return run


@pytest.fixture(scope="session")
def _scored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdatas = []
        for i in range(2):
            sdata = datasets.simulated_tissue(n_fovs=1, shape=(192, 192), channels=CHANNELS, seed=i)
            sdata.write(folder / f"s{i}.zarr")
            sdatas.append(sdata)
        tl.predict(sdatas, write=True, progress=False)
    return folder


@pytest.fixture
def scored(_scored, tmp_path):
    """Folder with two stores, ``s0.zarr`` and ``s1.zarr``, with tables ``nimbus`` and ``truth``."""
    for store in _scored.iterdir():
        shutil.copytree(store, tmp_path / store.name)
    return tmp_path


@pytest.fixture
def unchanged():
    """Raise unless a folder holds after the test what it held when this was called."""
    seen = []

    def look(folder):
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}

    yield lambda folder: seen.append((folder, look(folder)))
    for folder, before in seen:
        assert look(folder) == before
