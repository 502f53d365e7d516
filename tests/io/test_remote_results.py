"""Results of runs whose inputs or outputs lie behind a URL, and what an interrupted one leaves."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd

import nimbus_sd as nb
from nimbus_sd._sdata.remote import open_remote
from nimbus_sd.engine.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore")  # spatialdata's, zarr's and boto's own


@pytest.fixture
def cohort(factory, tmp_path):
    paths = []
    for i in range(2):
        factory(1, shape=(40, 48), n_cells=8, channels=("CD3", "CD8")).write(tmp_path / f"slide{i}.zarr")
        paths.append(tmp_path / f"slide{i}.zarr")
    return paths


def run(objects, model, **options):
    nb.tl.predict(objects, model=model, precision="float32", device="cpu", progress=False, **options)


def test_a_cohort_from_here_to_there(cohort, model, files, request):
    out = f"s3://bucket/{request.node.name}"
    objects = [sd.read_zarr(p) for p in cohort]
    run(objects, model, write=out)
    for path, sdata in zip(cohort, objects, strict=True):
        there = open_remote(f"{out}/{path.name}")
        np.testing.assert_array_equal(there["nimbus"].X, sdata["nimbus"].X)
        assert list(there.images) == []


def test_an_interrupted_run_on_a_remote_store_goes_on(cohort, model, files, request, tmp_path, monkeypatch):
    monkeypatch.setenv("NIMBUS_SD_CACHE", str(tmp_path / "cache"))
    for file in cohort[0].rglob("*"):
        if file.is_file():
            name = f"bucket/{request.node.name}.zarr/{file.relative_to(cohort[0]).as_posix()}"
            files.pipe_file(name, file.read_bytes())
    url = f"s3://bucket/{request.node.name}.zarr"
    add, done = Journal.add, []

    def stop_at_the_third(self, scored):
        add(self, scored)
        done.append(scored.block)
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(open_remote(url), model, tile=16, write=True)
    assert len(list((tmp_path / "cache" / "runs").glob("*/*/blocks"))) == 1
    first = set(done)
    done.clear()
    monkeypatch.setattr(Journal, "add", lambda self, scored: (done.append(scored.block), add(self, scored)))
    run(open_remote(url), model, tile=16, write=True)
    assert not first & set(done)
    assert not list((tmp_path / "cache" / "runs").glob("*/*"))
    local = sd.read_zarr(cohort[0])
    run(local, model, tile=16)
    np.testing.assert_array_equal(open_remote(url)["nimbus"].X, local["nimbus"].X)


def test_what_a_killed_upload_left_is_no_table(cohort, model, files, request):
    out = f"bucket/{request.node.name}"
    sdata = sd.read_zarr(cohort[0])
    run(sdata, model, write=f"s3://{out}", table="first")
    files.pipe_file(f"{out}/slide0.zarr/tables/nimbus/X/c/9/9", b"half of a table")
    run(sdata, model, write=f"s3://{out}")
    there = open_remote(f"s3://{out}/slide0.zarr")
    assert set(there.tables) == {"first", "nimbus"}
    np.testing.assert_array_equal(there["nimbus"].X, sdata["nimbus"].X)
    assert not files.exists(f"{out}/slide0.zarr/tables/nimbus/X/c/9/9")
