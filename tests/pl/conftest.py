"""A drawn field: a 6 x 8 grid of square cells, known scores, pixels that are read by the counted chunk."""

from __future__ import annotations

import threading
import types

import anndata as ad
import dask.array as da
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from spatialdata.transformations import Identity, Scale

ROWS, COLUMNS, PITCH, SIDE = 6, 8, 16, 12
CHANNELS = ["DNA", "CD3", "CD8", "CD20"]
MARKERS = CHANNELS[1:]
CHUNK = 32
FIRST_ID = 4_000_000_000


@pytest.fixture(autouse=True, scope="session")
def _agg():
    mpl.use("Agg")


@pytest.fixture(autouse=True)
def _nothing_leaks():
    before, settings = plt.get_fignums(), dict(mpl.rcParams)
    yield
    assert plt.get_fignums() == before
    assert dict(mpl.rcParams) == settings


def draw_labels() -> np.ndarray:
    labels = np.zeros((ROWS * PITCH, COLUMNS * PITCH), np.uint32)
    for k in range(ROWS * COLUMNS):
        y, x = divmod(k, COLUMNS)
        labels[y * PITCH + 2 : y * PITCH + 2 + SIDE, x * PITCH + 2 : x * PITCH + 2 + SIDE] = FIRST_ID + 3 * k
    return labels


def draw_image(labels: np.ndarray) -> np.ndarray:
    y, x = np.indices(labels.shape)
    return np.stack([x + 0 * y, (labels > 0) * 50, y, x + y]).astype(np.uint16)


def make_scores() -> np.ndarray:
    """CD3: even cells positive; CD8: the first half; CD20: none."""
    k = np.arange(ROWS * COLUMNS)
    return np.stack([np.where(k % 2 == 0, 0.9, 0.1), np.where(k < k.size // 2, 0.8, 0.2), 0 * k + 0.05], 1)


def counted(array: np.ndarray, chunks: tuple[int, ...], seen: list) -> da.Array:
    lock = threading.Lock()

    def note(block, block_info=None):
        with lock:
            seen.append(tuple(block_info[0]["chunk-location"]))
        return block

    return da.map_blocks(note, da.from_array(array, chunks=chunks), dtype=array.dtype, meta=array[:0])


def make_table(region: str, labels: np.ndarray, scores: np.ndarray) -> ad.AnnData:
    ids = np.unique(labels)[1:].astype(np.int64)
    order = np.random.default_rng(0).permutation(ids.size)  # rows must not be taken by position
    obs = pd.DataFrame(
        {"region": pd.Categorical([region] * ids.size), "instance_id": ids[order]},
        index=[f"{region}_{i}" for i in ids[order]],
    )
    scale = pd.DataFrame({"scale": [100.0, 50.0, 200.0]}, index=MARKERS)
    table = ad.AnnData(scores[order].astype(np.float32), obs=obs, var=scale)
    table.layers["integrated_expression"] = (scores[order] * [20, 10, 40]).astype(np.float32)
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")


@pytest.fixture
def field():
    """``sdata`` and the chunks that were read of it."""
    labels = draw_labels()
    image_reads: list = []
    label_reads: list = []
    t = {"fov": Identity(), "microns": Scale([0.5, 0.5], axes=("x", "y"))}
    image = Image2DModel.parse(
        counted(draw_image(labels), (1, CHUNK, CHUNK), image_reads),
        dims=("c", "y", "x"),
        c_coords=CHANNELS,
        transformations=t,
    )
    drawn = Labels2DModel.parse(
        counted(labels, (CHUNK, CHUNK), label_reads), dims=("y", "x"), transformations=dict(t)
    )
    maps = Image2DModel.parse(
        np.stack([np.full(labels.shape, v, np.float16) for v in (0.25, 0.5, 0.75)]),
        dims=("c", "y", "x"),
        c_coords=MARKERS,
        transformations={"fov": Identity()},
    )
    sdata = SpatialData(
        images={"fov_image": image, "probs": maps},
        labels={"fov_labels": drawn},
        tables={"nimbus": make_table("fov_labels", labels, make_scores())},
        attrs={"nimbus_sd": {"maps": ["probs"]}},
    )
    image_reads.clear()
    label_reads.clear()
    return types.SimpleNamespace(sdata=sdata, labels=labels, image_reads=image_reads, label_reads=label_reads)


@pytest.fixture
def adata(field):
    """The table, with clusters: 0 and 2 alike, 1 apart."""
    table = field.sdata["nimbus"].copy()
    positive = table.X[:, 0] > 0.5
    early = table.X[:, 1] > 0.5
    table.obs["leiden"] = pd.Categorical(np.where(~positive, "1", np.where(early, "0", "2")))
    return table
