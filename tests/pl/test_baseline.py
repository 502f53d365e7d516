"""Small pictures beside stored ones: a change that no other test names still shows.

Text is taken out and pictures are compared after averaging over blocks, so that fonts and
another build of FreeType make no difference. After a wanted change:
``NIMBUS_SD_NEW_BASELINES=1 python -m pytest tests/pl/test_baseline.py``, then look at them.
"""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import nimbus_sd as nb

FOLDER = Path(__file__).parent / "baseline"
TOLERANCE = 6.0  # of 255, root mean square over blocks of 4 x 4 px
PINNED = "3.11"


def render(fig: Figure) -> np.ndarray:
    """``(y, x, 3)`` uint8 of a figure without its texts."""
    for text in fig.findobj(Text):
        text.set_visible(False)
    fig.set_layout_engine("none")
    fig.set_dpi(50)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def blocks(pixels: np.ndarray) -> np.ndarray:
    y, x = (n // 4 * 4 for n in pixels.shape[:2])
    return pixels[:y, :x].reshape(y // 4, 4, x // 4, 4, 3).mean((1, 3))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference of blocks; infinite if the sizes differ."""
    if one.shape != other.shape:
        return float("inf")
    return float(np.sqrt(((blocks(one) - blocks(other)) ** 2).mean()))


def gallery(sdata):
    return nb.pl.cell_gallery(
        sdata, ["CD3", "CD8"], pick="high", n=4, size=24, figsize=(4, 2), return_fig=True
    )


def overlay(sdata):
    return nb.pl.overlay(sdata, ["CD3", "CD8"], groupby="kind", figsize=(4, 3), return_fig=True)


def spatial_map(sdata):
    return nb.pl.spatial_map(sdata, "kind", figsize=(4, 3), return_fig=True)


def coexpression(sdata):
    return nb.pl.coexpression(sdata["nimbus"], measure="correlation", figsize=(3, 3), return_fig=True)


def density(sdata):
    return nb.pl.score_distribution(sdata["nimbus"], kind="kde", figsize=(5, 2.5), return_fig=True)


def marker_umap(sdata):
    return nb.pl.marker_umap(sdata["nimbus"], ["CD3"], groupby="kind", figsize=(5, 2.2), return_fig=True)


def rediscovery(sdata):
    table = sdata["nimbus"]
    early = np.where(table.obsm["spatial"][:, 1] < 48, "T", "B")
    table.obs["type"] = pd.Categorical(early)
    found = nb.tl.rediscovery(table, "type", "kind")
    return nb.pl.rediscovery(found, figsize=(3, 2), return_fig=True)


@pytest.fixture
def sdata(field):
    table = field.sdata["nimbus"]
    k = ((table.obs["instance_id"] - 4_000_000_000) // 3).to_numpy()
    y, x = np.divmod(k, 8)
    table.obsm["spatial"] = np.stack([x, y], 1) * 16.0 + 8
    table.obs["kind"] = pd.Categorical(np.array(["a", "b", "c"])[k % 3])
    table.X[:, 0] = k / 47
    table.obsm["X_umap"] = np.stack([np.sin(k / 5) * k, np.cos(k / 5) * k], 1)
    return field.sdata


@pytest.mark.skipif(not mpl.__version__.startswith(PINNED), reason=f"pictures of matplotlib {PINNED}")
@pytest.mark.parametrize(
    "draw",
    [gallery, overlay, spatial_map, coexpression, density, marker_umap, rediscovery],
    ids=lambda f: f.__name__,
)
def test_looks_as_before(sdata, draw, tmp_path):
    found = render(draw(sdata))
    path = FOLDER / f"{draw.__name__}.png"
    if os.environ.get("NIMBUS_SD_NEW_BASELINES"):
        FOLDER.mkdir(exist_ok=True)
        Image.fromarray(found).save(path, optimize=True)
    Image.fromarray(found).save(tmp_path / path.name)
    with Image.open(path) as stored:
        gap = difference(found, np.asarray(stored.convert("RGB")))
    assert gap < TOLERANCE, f"differs by {gap:.1f} from {path}; what was drawn: {tmp_path / path.name}"
    assert path.stat().st_size < 30_000


def test_a_wrong_picture_is_seen(sdata):
    right = render(spatial_map(sdata))
    sdata["nimbus"].obs["kind"] = sdata["nimbus"].obs["kind"].cat.rename_categories({"a": "b", "b": "a"})
    sdata["nimbus"].obs["kind"] = sdata["nimbus"].obs["kind"].cat.reorder_categories(["a", "b", "c"])
    assert difference(right, render(spatial_map(sdata))) > 2 * TOLERANCE
    assert difference(right, np.roll(right, 1, axis=1)) < TOLERANCE * 3
