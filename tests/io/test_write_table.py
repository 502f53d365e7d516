"""write_table: whatever fails, the store holds the old table or the new one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import zarr
from scipy import sparse
from spatialdata.models import Labels2DModel, TableModel

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata import swap

pytestmark = pytest.mark.filterwarnings("ignore")  # spatialdata's and zarr's own, on every write


def table(value: float, n: int = 5) -> ad.AnnData:
    obs = pd.DataFrame(
        {"region": pd.Categorical(["a_labels"] * n), "instance_id": np.arange(1, n + 1)},
        index=[f"a_labels_{i + 1}" for i in range(n)],
    )
    adata = ad.AnnData(
        np.full((n, 3), value, np.float32), obs=obs, var=pd.DataFrame(index=["CD3", "CD8", "CD4"])
    )
    adata.obsm["spatial"] = np.random.default_rng(0).random((n, 2))
    adata.uns["nimbus"] = {"model": "x", "mpp": 0.5, "sizes": np.arange(3)}
    return TableModel.parse(adata, region="a_labels", region_key="region", instance_key="instance_id")


def values(store: Path) -> float | None:
    """What a fresh reader finds: the table's value, or None; anything half fails."""
    sdata = sd.read_zarr(store)
    assert "a_labels" in sdata.labels
    if "nimbus" not in sdata.tables:
        return None
    found = sdata["nimbus"]
    wanted = table(float(found.X[0, 0]), found.n_obs)
    np.testing.assert_array_equal(found.X, wanted.X)
    np.testing.assert_array_equal(found.obsm["spatial"], wanted.obsm["spatial"])
    assert found.obs_names.tolist() == wanted.obs_names.tolist()
    return float(found.X[0, 0])


def leftovers(store: Path) -> list[str]:
    return [entry.name for entry in (store / "tables").glob(".*") if entry.is_dir()]


@pytest.fixture
def sdata(tmp_path: Path) -> sd.SpatialData:
    """Backed by a store that holds labels and no table yet."""
    labels = np.arange(36, dtype=np.uint32).reshape(6, 6) % 6
    data = sd.SpatialData(labels={"a_labels": Labels2DModel.parse(labels, dims=("y", "x"))})
    data.write(tmp_path / "data.zarr")
    return sd.read_zarr(tmp_path / "data.zarr")


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchange(request, monkeypatch):
    """Both ways to put a table in place."""
    if not request.param:
        monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    return request.param


def set_table(sdata: sd.SpatialData, value: float, n: int = 5) -> None:
    if "nimbus" in sdata.tables:
        del sdata["nimbus"]
    sdata["nimbus"] = table(value, n)


def test_write_replace_and_add_a_column(sdata, exchange):
    for value, n in ((1.0, 5), (2.0, 3), (3.0, 5)):
        set_table(sdata, value, n)
        assert nb.io.write_table(sdata) == "nimbus"
        assert values(sdata.path) == value
        assert leftovers(sdata.path) == []
    sdata["nimbus"].obs["leiden"] = pd.Categorical(["b", "a", "b", "a", "b"], categories=["b", "a", "z"])
    sdata["nimbus"].layers["raw"] = sparse.csr_matrix(np.eye(5, 3))
    nb.io.write_table(sdata)
    found = sd.read_zarr(sdata.path)["nimbus"]
    assert found.obs["leiden"].cat.categories.tolist() == ["b", "a", "z"]
    assert found.layers["raw"].toarray().trace() == 3
    assert found.uns[TableModel.ATTRS_KEY]["region"] == "a_labels"


def test_same_on_disk_as_spatialdata_writes_it(sdata, tmp_path):
    set_table(sdata, 1.0)
    nb.io.write_table(sdata)
    plain = sd.read_zarr(sdata.path)
    plain.write(tmp_path / "plain.zarr")

    def tree(store: Path) -> dict[str, bytes]:
        group = store / "tables" / "nimbus"
        return {
            str(file.relative_to(group)): file.read_bytes()
            for file in sorted(group.rglob("*"))
            if file.is_file()
        }

    assert tree(sdata.path) == tree(tmp_path / "plain.zarr")


def test_consolidated_metadata_follow(sdata):
    for n in (5, 3):
        set_table(sdata, 1.0, n)
        nb.io.write_table(sdata)
        root = zarr.open_group(sdata.path, mode="r", use_consolidated=True)
        assert root["tables/nimbus/X"].shape == (n, 3)
        assert [key for key in root["tables"].group_keys()] == ["nimbus"]  # noqa: C416


def test_store_without_consolidated_metadata(tmp_path):
    labels = Labels2DModel.parse(np.ones((4, 4), np.uint32), dims=("y", "x"))
    sd.SpatialData(labels={"a_labels": labels}).write(tmp_path / "data.zarr", consolidate_metadata=False)
    data = sd.read_zarr(tmp_path / "data.zarr")
    set_table(data, 1.0)
    nb.io.write_table(data)
    assert values(data.path) == 1.0
    assert not data.has_consolidated_metadata()


def test_older_zarr_format(tmp_path):
    from spatialdata._io.format import SpatialDataContainerFormatV01

    labels = Labels2DModel.parse(np.ones((4, 4), np.uint32), dims=("y", "x"))
    data = sd.SpatialData(labels={"a_labels": labels})
    data.write(tmp_path / "data.zarr", sdata_formats=SpatialDataContainerFormatV01())
    data = sd.read_zarr(tmp_path / "data.zarr")
    for value in (1.0, 2.0):
        set_table(data, value)
        nb.io.write_table(data)
        assert values(data.path) == value
    assert (data.path / "tables" / "nimbus" / ".zgroup").is_file()


def steps(monkeypatch, fail_at: int, error: type[BaseException]) -> list[str]:
    """Count every step that touches the store, and fail at one of them (before it, or half way through)."""
    seen: list[str] = []

    def wrap(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def step(*args: object, **kwargs: object) -> object:
            seen.append(name)
            if len(seen) == fail_at:
                raise error(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, step)

    wrap(sd.SpatialData, "write")
    wrap(sd.SpatialData, "write_consolidated_metadata")
    wrap(ad, "read_zarr")
    wrap(Path, "rename")
    wrap(swap, "_exchange")
    return seen


@pytest.mark.parametrize(("error", "before"), [(OSError, None), (KeyboardInterrupt, 1.0)])
def test_each_step_may_fail(sdata, exchange, error, before):
    if before is not None:
        set_table(sdata, before)
        nb.io.write_table(sdata)
    set_table(sdata, 2.0, n=4)
    for fail_at in range(1, 20):
        with pytest.MonkeyPatch.context() as monkeypatch:
            if not exchange:
                monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
            seen = steps(monkeypatch, fail_at, error)
            try:
                nb.io.write_table(sdata)
            except error:
                failed = True
            else:
                failed = False
        assert values(sdata.path) == (before if failed else 2.0), seen
        assert leftovers(sdata.path) == [], seen
        if not failed:
            break
    assert fail_at > 4
    assert values(sdata.path) == 2.0


CHILD = """
import os, sys, warnings
warnings.simplefilter("ignore")
import anndata, spatialdata as sd
from pathlib import Path
from nimbus_sd._sdata import persist, swap
store, fail_at, exchange = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
data = sd.read_zarr(store)
new = data["nimbus"][:4].copy(); new.X[:] = 2
new.obsm["spatial"] = __import__("numpy").random.default_rng(0).random((4, 2))
del data["nimbus"]; data["nimbus"] = new
count = 0
def wrap(owner, name):
    real = getattr(owner, name)
    def step(*args, **kwargs):
        global count
        count += 1
        if count == fail_at: os._exit(9)
        return real(*args, **kwargs)
    setattr(owner, name, step)
if not exchange: swap._exchange = lambda one, other: False
for owner, name in ((sd.SpatialData, "write_consolidated_metadata"), (anndata, "read_zarr"), (Path, "rename"),
                    (swap, "_exchange"), (swap.shutil, "rmtree")): wrap(owner, name)
persist.persist_table(data, "nimbus", True)
"""


@pytest.mark.parametrize(
    ("exchange", "fail_at"),
    [(True, 3), (False, 4), (False, 5), (False, 6)],
    ids=["metadata stale", "both aside", "new in place, old aside", "metadata stale after renames"],
)
def test_a_killed_process(sdata, exchange, fail_at):
    """Between two renames (systems without an exchange) the table is aside; the next write finds it."""
    set_table(sdata, 1.0)
    nb.io.write_table(sdata)
    command = [sys.executable, "-c", CHILD, str(sdata.path), str(fail_at), str(exchange)]
    code = subprocess.run(command, check=False).returncode
    assert code == 9
    if exchange or (sdata.path / "tables" / "nimbus").exists():
        assert values(sdata.path) in (1.0, 2.0)
    else:
        with pytest.raises(InputError, match="overwrite=True"):  # what was aside is the table on disk again
            nb.io.write_table(sdata, overwrite=False)
        assert values(sdata.path) == 1.0
    nb.io.write_table(sdata)
    assert leftovers(sdata.path) == []
    assert values(sdata.path) == 1.0


def test_leftovers_of_a_crash(sdata):
    set_table(sdata, 1.0)
    nb.io.write_table(sdata)
    tables = sdata.path / "tables"
    old = tables / f".nimbus.{'0' * 32}.old.nimbus-tmp"
    half = tables / f".nimbus.{'1' * 32}.nimbus-tmp"
    others = [tables / f".other.{'1' * 32}.nimbus-tmp", tables / ".nimbus.mine"]
    (tables / "nimbus").rename(old)  # as if killed between two renames
    for folder in (half, *others):
        folder.mkdir()
    (half / "zarr.json").write_text("{", encoding="utf-8")
    set_table(sdata, 2.0)
    with pytest.raises(InputError, match="on disk already"):
        nb.io.write_table(sdata, overwrite=False)
    assert values(sdata.path) == 1.0
    assert not old.exists()
    assert not half.exists()
    assert all(folder.exists() for folder in others)
    for folder in others:
        shutil.rmtree(folder)
    nb.io.write_table(sdata)
    assert values(sdata.path) == 2.0


def test_what_reads_back_differently_is_not_put_in_place(sdata, monkeypatch):
    set_table(sdata, 1.0)
    nb.io.write_table(sdata)
    real = ad.read_zarr

    def rotten(store):
        found = real(store)
        found.X[1, 1] += 1
        found.obs["instance_id"] += 1
        return found

    set_table(sdata, 2.0)
    with monkeypatch.context() as broken:
        broken.setattr(ad, "read_zarr", rotten)
        with pytest.raises(InputError, match="X, obs read back differently; nothing was replaced"):
            nb.io.write_table(sdata)
    assert values(sdata.path) == 1.0
    assert leftovers(sdata.path) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.obs.__setitem__("text", ["a", None, "b", "", "NA"]),
        lambda t: t.obs.__setitem__("number", [1.0, np.nan, 2, 3, 4]),
        lambda t: t.obs.__setitem__("flag", [True, False, True, True, False]),
        lambda t: t.obs.__setitem__("category", pd.Categorical(["a", None, "b", "a", "a"])),
        lambda t: t.obs.__setitem__("nullable", pd.array([1, None, 2, 3, 4], dtype="Int64")),
        lambda t: t.layers.__setitem__("nan", np.full(t.shape, np.nan)),
        lambda t: t.obsm.__setitem__("frame", pd.DataFrame({"u": range(5)}, index=t.obs_names)),
        lambda t: setattr(t, "X", sparse.csc_matrix(np.eye(5, 3, dtype=np.float32))),
        lambda t: setattr(t, "X", None),
    ],
)
def test_what_tables_may_hold(sdata, change):
    set_table(sdata, 1.0)
    change(sdata["nimbus"])
    nb.io.write_table(sdata)
    assert sd.read_zarr(sdata.path)["nimbus"].shape == (5, 3)


def test_errors(sdata, tmp_path):
    with pytest.raises(ElementNotFoundError, match=r"no table 'nimbus' in the object; it has: \(none\)"):
        nb.io.write_table(sdata)
    set_table(sdata, 1.0)
    nb.io.write_table(sdata, overwrite=False)
    with pytest.raises(InputError, match=r"table 'nimbus' is on disk already. Give overwrite=True"):
        nb.io.write_table(sdata, overwrite=False)
    loose = sd.SpatialData(tables={"t": ad.AnnData(np.ones((2, 2)))})
    with pytest.raises(InputError, match=r"not backed by a zarr store.*sdata.write\('data.zarr'\)"):
        nb.io.write_table(loose, "t")
    loose.path = "nowhere/data.zarr"
    with pytest.raises(InputError, match="not a folder on a local disk, nor the URL"):
        nb.io.write_table(loose, "t")
    del sdata["a_labels"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata["a_labels"] = ad.AnnData(np.ones((2, 2)))
    with pytest.raises(InputError, match="'a_labels' is an element of labels already"):
        nb.io.write_table(sdata, "a_labels")


def test_unwritable_table_leaves_the_old_one(sdata):
    set_table(sdata, 1.0)
    nb.io.write_table(sdata)
    set_table(sdata, 2.0)
    sdata["nimbus"].uns["broken"] = object()
    with pytest.raises(Exception, match="broken"):  # anndata's own, it names the key
        nb.io.write_table(sdata)
    assert values(sdata.path) == 1.0
    assert leftovers(sdata.path) == []
