"""Fixtures: small SpatialData objects, models on disk, real data where it is there."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import HealthCheck, settings
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Identity, Scale, Sequence, set_transformation

import nimbus_sd as nb
from nimbus_sd.models.loading import LoadedModel
from nimbus_sd.testing import directional_model, random_image, random_labels

torch.set_num_threads(1)
settings.register_profile(
    "nimbus",
    deadline=None,  # the first example pays for imports and caches
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=True,
)
settings.load_profile("nimbus")

CHANNELS = ("CD3", "CD8", "CD20")
REPOSITORY = Path(__file__).parents[1]


def make_sdata(
    n: int = 1,
    *,
    shape: tuple[int, int] = (70, 52),
    channels: tuple[str, ...] = CHANNELS,
    dtype: str = "uint16",
    mpp: float | None = 1.0,
    n_cells: int = 14,
    label_dtype: str = "uint32",
    chunks: tuple[int, int, int] | None = None,
    scale_factors: list[int] | None = None,
) -> SpatialData:
    """Fields ``fov0_image`` / ``fov0_labels``, ..., each in a coordinate system of its own."""
    elements = {}
    for i in range(n):
        to = {f"fov{i}": Identity()}
        if mpp is not None:
            to["microns"] = Scale([mpp, mpp], axes=("x", "y"))
        image = random_image((len(channels), *shape), seed=i, dtype=dtype)
        elements[f"fov{i}_image"] = Image2DModel.parse(
            image,
            dims=("c", "y", "x"),
            c_coords=list(channels),
            transformations=dict(to),
            chunks=chunks,
            scale_factors=scale_factors,
        )
        labels = random_labels(shape, n=n_cells, seed=50 + i, dtype=label_dtype)
        elements[f"fov{i}_labels"] = Labels2DModel.parse(
            labels, dims=("y", "x"), transformations=dict(to), scale_factors=scale_factors
        )
    return SpatialData.init_from_elements(elements)


@pytest.fixture
def sdata() -> SpatialData:
    """One field, 1 µm px, three markers."""
    return make_sdata()


@pytest.fixture
def factory() -> Callable[..., SpatialData]:
    """See :func:`make_sdata`."""
    return make_sdata


@pytest.fixture
def place() -> Callable[..., None]:
    """Set the transformations of an element from a Scale and a Translation of its grid."""

    def put(sdata: SpatialData, name: str, *steps: object, system: str = "global") -> None:
        set_transformation(sdata[name], {system: Sequence(list(steps))}, set_all=True)

    return put


@pytest.fixture
def model() -> LoadedModel:
    """A fake network that notices errors of geometry."""
    return directional_model()


@pytest.fixture
def score(model: LoadedModel) -> Callable[..., AnnData]:
    """Run ``nb.tl.predict`` with the fake network in float32 and return the table."""

    def run(sdata: SpatialData, **options: object) -> AnnData:
        options = {"model": model, "precision": "float32", "device": "cpu", "progress": False} | options
        nb.tl.predict(sdata, **options)
        return sdata[options.get("into") or options.get("table", "nimbus")]

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _folder(variable: str) -> Path:
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"set {variable} to the folder that this test reads")
    return Path(folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that ask for it carry the marker ``realdata``."""
    folder = _folder("NIMBUS_SD_DATA")
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set NIMBUS_SD_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def parity() -> Path:
    """The folder of the reference weights; tests that ask for it carry the marker ``parity``."""
    folder = _folder("NIMBUS_SD_PARITY")
    if not (folder / "unet_reference.npz").is_file():
        pytest.skip(f"no reference output at {folder}; set NIMBUS_SD_PARITY to its folder")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by fixture, so that ``-m "not realdata"`` never misses one."""
    for item in items:
        for fixture, marker in (("real_data", "realdata"), ("parity", "parity")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


@pytest.fixture
def unchanged() -> Callable[[SpatialData], AbstractContextManager[None]]:
    """``with unchanged(sdata):`` fails if elements, tables or attrs are not as they were."""

    def snapshot(sdata: SpatialData) -> dict:
        tables = {name: (table, table.copy()) for name, table in sdata.tables.items()}
        return {"elements": {name: element for _, name, element in sdata.gen_elements()}, "tables": tables}

    @contextmanager
    def check(sdata: SpatialData) -> Iterator[None]:
        before, attrs = snapshot(sdata), copy.deepcopy(sdata.attrs)
        disk = _disk(sdata)
        yield
        after = snapshot(sdata)
        assert after["elements"].keys() == before["elements"].keys()
        assert all(after["elements"][k] is before["elements"][k] for k in before["elements"])
        for name, (_, table) in before["tables"].items():
            now = sdata.tables[name]
            pd.testing.assert_frame_equal(now.obs, table.obs)
            pd.testing.assert_frame_equal(now.var, table.var)
            np.testing.assert_array_equal(now.X, table.X)
            assert now.layers.keys() == table.layers.keys()
            assert now.uns.keys() == table.uns.keys()
        assert sdata.attrs == attrs
        assert _disk(sdata) == disk

    return check


def _disk(sdata: SpatialData) -> set[str]:
    return set() if sdata.path is None else {str(p) for p in Path(sdata.path).rglob("*")}
