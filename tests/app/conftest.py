"""Reviewed objects, small and large, and a browser where there is one."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from spatialdata.transformations import Identity, Scale

MARKERS = ("CD3", "CD20", "PanCK")
CHANNELS = ("HH3", *MARKERS)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def make(n_fields: int = 2, *, side: int = 90, pitch: int = 15, seed: int = 0) -> SpatialData:
    """Fields of discs on a grid, one per `pitch` px, and a table of scores with five clusters."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    per_row = side // pitch
    centre = (pitch - 1) / 2
    disc = np.hypot(y % pitch - centre, x % pitch - centre) < 0.42 * pitch
    grid = (y // pitch) * per_row + x // pitch
    labels = np.where(disc & (y < per_row * pitch) & (x < per_row * pitch), 3 * grid + 5, 0).astype(np.uint32)
    ids = np.unique(labels[labels > 0]).astype(np.int64)
    n = len(ids)
    area = np.bincount(labels.ravel())[ids]
    images, segmentations, tables = {}, {}, []
    for i in range(n_fields):
        cluster = rng.integers(0, 5, n)
        scores = np.clip(0.15 + 0.17 * cluster[:, None] + rng.normal(0, 0.12, (n, 3)), 0, 1)
        by_id = np.zeros((3, labels.max() + 1))
        by_id[:, ids] = scores.T
        planes = [labels > 0, *(b[labels] for b in by_id)]
        image = (np.stack(planes) * 900 + rng.random((4, side, side)) * 60).astype(np.uint16)
        to = {f"fov{i}": Identity(), "microns": Scale([0.5, 0.5], axes=("x", "y"))}
        images[f"fov{i}_image"] = Image2DModel.parse(
            image, dims=("c", "y", "x"), c_coords=list(CHANNELS), transformations=dict(to)
        )
        segmentations[f"fov{i}_labels"] = Labels2DModel.parse(
            labels, dims=("y", "x"), transformations=dict(to)
        )
        place = (ids - 5) // 3
        centres = np.column_stack([place % per_row, place // per_row]) * pitch + pitch / 2
        obs = pd.DataFrame({"region": f"fov{i}_labels", "instance_id": ids, "area_px": area})
        tables.append((obs.assign(metacluster=cluster.astype(str)), scores, centres))
    obs = pd.concat([t[0] for t in tables], ignore_index=True)
    obs.index = obs["region"] + "_" + obs["instance_id"].astype(str)
    obs["metacluster"] = pd.Categorical(obs["metacluster"])
    obs["region"] = pd.Categorical(obs["region"])
    adata = AnnData(
        np.concatenate([t[1] for t in tables]).astype(np.float32),
        obs=obs,
        var=pd.DataFrame({"scale": 1000.0}, index=list(MARKERS)),
        obsm={"spatial": np.concatenate([t[2] for t in tables])},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = TableModel.parse(
            adata, region=list(segmentations), region_key="region", instance_key="instance_id"
        )
        return SpatialData(images=images, labels=segmentations, tables={"nimbus": table})


def in_store(sdata: SpatialData, path) -> SpatialData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(path)
        return sd.read_zarr(path)


@pytest.fixture
def reviewed() -> Callable[..., SpatialData]:
    """See :func:`make`."""
    return make


@pytest.fixture
def small() -> SpatialData:
    """Two fields of 36 cells."""
    return make()


@pytest.fixture
def stored(tmp_path) -> SpatialData:
    """The same in a store, ``tmp_path / "t.zarr"``."""
    return in_store(make(), tmp_path / "t.zarr")


@pytest.fixture
def browser():
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium found")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield found
        found.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
