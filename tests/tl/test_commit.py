"""Results that can't be stored: object and store stay as they were, and agree with each other."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd

from nimbus_sd._sdata.elements import finest
from nimbus_sd.tl import _predict_table, _results


@pytest.fixture
def stored(factory: Callable[..., sd.SpatialData], tmp_path: Path) -> sd.SpatialData:
    factory().write(tmp_path / "s.zarr")
    return sd.read_zarr(tmp_path / "s.zarr")


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """The kernel refuses what it would refuse on a full disk: no file may grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full_when_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full once the scores are known."""
    real = _predict_table.commit

    def commit(*args: object, **options: object) -> None:
        with full_disk(300):
            real(*args, **options)

    monkeypatch.setattr(_predict_table, "commit", commit)


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on tables hold something that has no place in a zarr store."""

    def spoil() -> None:
        real = _results.provenance_of
        monkeypatch.setattr(_results, "provenance_of", lambda *args: real(*args) | {"broken": object()})

    return spoil


def files_of(sdata: sd.SpatialData) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in Path(sdata.path).rglob("*") if file.is_file()}


def pixels(sdata: sd.SpatialData, name: str) -> np.ndarray:
    return finest(sdata[name]).data.compute()


@pytest.mark.usefixtures("full_when_stored")
@pytest.mark.parametrize("maps", [None, "score"])
def test_a_full_disk_leaves_no_first_table(stored, score, unchanged, maps):
    before = files_of(stored)
    with unchanged(stored), pytest.raises(OSError, match="File too large"):
        score(stored, write=True, maps=maps)
    assert files_of(stored) == before


@pytest.mark.parametrize("maps", [None, "score"])
def test_a_full_disk_leaves_the_old_results(stored, score, unchanged, maps, request):
    score(stored, write=True, maps=maps, channels=["CD3"])
    before, table = files_of(stored), stored["nimbus"]
    request.getfixturevalue("full_when_stored")
    with unchanged(stored), pytest.raises(OSError, match="File too large"):
        score(stored, write=True, maps=maps, overwrite=True)
    assert stored["nimbus"] is table
    assert files_of(stored) == before


@pytest.mark.parametrize("again", [False, True])
def test_a_layer_that_can_not_be_written(stored, score, unchanged, unwritable, again):
    score(stored, write=True, table="mine")
    if again:
        score(stored, write=True, into="mine", channels=["CD3"])
    before = {key: dict(getattr(stored["mine"], key)) for key in ("layers", "uns")}
    on_disk = files_of(stored)
    unwritable()
    with unchanged(stored), pytest.raises(Exception, match="broken"):  # anndata's own, it names the key
        score(stored, write=True, into="mine", overwrite=True)
    for key, wanted in before.items():
        for name, value in wanted.items():
            np.testing.assert_equal(getattr(stored["mine"], key)[name], value)
    assert files_of(stored) == on_disk


def test_maps_that_got_there_before_the_table_failed_are_in_both(stored, score, unwritable):
    score(stored, write=True, maps="score", channels=["CD3"])
    table, old = stored["nimbus"], stored["nimbus"].copy()
    unwritable()
    with pytest.raises(Exception, match="broken"):
        score(stored, write=True, maps="score", overwrite=True)
    again = sd.read_zarr(stored.path)
    np.testing.assert_array_equal(pixels(again, "score"), pixels(stored, "score"))
    assert len(pixels(stored, "score")) == 3
    assert stored["nimbus"] is table
    np.testing.assert_array_equal(stored["nimbus"].X, old.X)
    np.testing.assert_array_equal(again["nimbus"].X, old.X)
    assert again.attrs["nimbus_sd"]["maps"] == stored.attrs["nimbus_sd"]["maps"] == ["score"]
