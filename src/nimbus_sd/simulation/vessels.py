"""Small blood vessels of the stroma, with red cells in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nimbus_sd.simulation._types import FloatArray
from nimbus_sd.simulation.lymphocytes import CODE
from nimbus_sd.simulation.noise import smooth_noise
from nimbus_sd.simulation.nuclei import outside
from nimbus_sd.simulation.tissue import EPITHELIUM, LUMEN, STROMA, Tissue, border_distance

_PER_MM2 = 90.0  # of stroma
_WALL = 4.5  # µm
_AWAY = 12.0  # µm from the epithelium
_COARSE = 4
_RED_CELL = 2.9  # µm, radius


def open_vessels(rng: np.random.Generator, tissue: Tissue) -> tuple[Tissue, FloatArray]:
    """Cut vessels into the stroma.

    Cells inside a vessel lose their pixels; those along its wall become endothelium.

    Parameters
    ----------
    rng
        Source of randomness.
    tissue
        From :func:`~nimbus_sd.simulation.tissue.grow_tissue`.

    Returns
    -------
    The tissue, and red cells ``(y, x)`` float32, 1 where one is thick.
    """
    mpp, shape = tissue.mpp, tissue.cells.shape
    solid = np.isin(tissue.region, (EPITHELIUM, LUMEN))
    room = (tissue.region == STROMA)[::_COARSE, ::_COARSE] & (outside(tissue, step=_COARSE) > _AWAY)
    number = rng.poisson(_PER_MM2 * float((tissue.region == STROMA).sum()) * mpp**2 / 1e6)
    places = np.argwhere(room) * _COARSE
    if not number or not len(places):
        return tissue, np.zeros(shape, np.float32)
    inner, wall = np.zeros(shape, bool), np.zeros(shape, bool)
    bend = smooth_noise(rng, shape, 8 / mpp)
    for y, x in places[rng.integers(len(places), size=number)]:
        short = rng.uniform(3.0, 8.0)
        long = short * rng.uniform(1.0, 2.6)
        turn = rng.uniform(0, np.pi)
        reach = int((long * 1.3 + _WALL) / mpp) + 2
        at = (slice(max(y - reach, 0), y + reach + 1), slice(max(x - reach, 0), x + reach + 1))
        rows = ((np.arange(shape[0])[at[0]] - y) * mpp)[:, None]
        columns = ((np.arange(shape[1])[at[1]] - x) * mpp)[None]
        along = rows * np.sin(turn) + columns * np.cos(turn)
        across = rows * np.cos(turn) - columns * np.sin(turn)
        rho = np.hypot(along / long, across / short) + 0.12 * bend[at]
        inner[at] |= rho < 1
        wall[at] |= (rho - 1) * short < _WALL
    inner &= ~solid
    cells = np.where(inner, 0, tissue.cells).astype(np.int32)
    at_centre = tissue.centres.astype(int)
    cells[np.isin(cells, np.flatnonzero(inner[at_centre[:, 0], at_centre[:, 1]])[1:])] = 0
    lined = wall[at_centre[:, 0], at_centre[:, 1]] & (
        tissue.region[at_centre[:, 0], at_centre[:, 1]] == STROMA
    )
    opened = replace(
        tissue,
        cells=cells,
        nuclei=tissue.nuclei & (cells > 0),
        edge=border_distance(cells, mpp),
        region=np.where(inner, LUMEN, tissue.region).astype(np.uint8),
        types=np.where(lined, CODE["endothelial"], tissue.types).astype(np.uint8),
    )
    return opened, _red_cells(rng, inner, mpp)


def _red_cells(rng: np.random.Generator, inner: np.ndarray, mpp: float) -> FloatArray:
    """Discs with a pale middle, packed loosely: ``(y, x)`` float32."""
    image = np.zeros(inner.shape, np.float32)
    step = 1.7 * _RED_CELL / mpp
    full = smooth_noise(rng, inner.shape, 25 / mpp) > -0.2
    rows, columns = (np.arange(step / 2, n, step) for n in inner.shape)
    points = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    points = points + rng.uniform(-0.35, 0.35, points.shape) * step
    whole = points.astype(int).clip(0, np.array(inner.shape) - 1)
    for y, x in points[(inner & full)[whole[:, 0], whole[:, 1]] & (rng.random(len(points)) < 0.8)]:
        radius = _RED_CELL * rng.uniform(0.8, 1.1) / mpp
        top, left = max(int(y - radius) - 1, 0), max(int(x - radius) - 1, 0)
        at = (slice(top, int(y + radius) + 2), slice(left, int(x + radius) + 2))
        rho = np.hypot(
            np.arange(inner.shape[0])[at[0]][:, None] - y, np.arange(inner.shape[1])[at[1]][None] - x
        )
        rho = rho / radius
        disc = (0.75 + 0.25 * np.minimum(rho, 1)) / (1 + np.exp(np.clip((rho - 0.93) / 0.06, -30, 30)))
        image[at] = np.maximum(image[at], disc)
    return image * inner
