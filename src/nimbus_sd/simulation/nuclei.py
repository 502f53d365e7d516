"""Nuclei as a section shows them: outlines, chromatin, and the cytoplasm of small round cells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from nimbus_sd.simulation._types import AnyArray, BoolArray, FloatArray
from nimbus_sd.simulation.morphology import Morphology
from nimbus_sd.simulation.noise import smooth_noise
from nimbus_sd.simulation.tissue import EPITHELIUM, LUMEN, Tissue, border_distance

_HARMONICS = np.arange(2, 6)
_REACH = 1.5
_SOFT = 0.28  # µm, edge of a nucleus in a section of 4 µm
_APICAL = 26.0  # µm, how far epithelium feels its lumen


@dataclass(frozen=True)
class Poses:
    """Where nuclei lie, each ``(n + 1, …)``.

    Parameters
    ----------
    centres
        ``(y, x)`` in px.
    turn
        Direction of the long axis in rad.
    apical
        Unit vector ``(y, x)`` towards the lumen, 0 where there is none near.
    """

    centres: FloatArray
    turn: FloatArray
    apical: FloatArray


@dataclass(frozen=True)
class Chromatin:
    """A tissue with nuclei of its cells' own size, and their dye.

    Parameters
    ----------
    tissue
        With nuclei and small round cells repainted.
    density
        ``(y, x)`` float32 units of haematoxylin in nuclei.
    cover
        ``(y, x)`` float32 in [0, 1], how much of the section's thickness is nucleus.
    halo
        ``(y, x)`` bool, cytoplasm of small round cells.
    """

    tissue: Tissue
    density: FloatArray
    cover: FloatArray
    halo: BoolArray


def pose_nuclei(rng: np.random.Generator, tissue: Tissue, looks: Morphology, *, depth: FloatArray) -> Poses:
    """Lay out nuclei: along the tissue's grain, and in epithelium away from the lumen.

    Parameters
    ----------
    rng
        Source of randomness.
    tissue, looks
        Cells and their looks.
    depth
        From :func:`outside`.
    """
    n, mpp = tissue.n_cells + 1, tissue.mpp
    at = tissue.centres.astype(int)
    region = tissue.region[at[:, 0], at[:, 1]]
    apical = _towards_lumen(tissue)[at[:, 0] // 2, at[:, 1] // 2]
    apical[region != EPITHELIUM] = 0
    field = _grain(rng, tissue, depth)[at[:, 0], at[:, 1]] + rng.normal(0, 0.25, n)
    polar = np.hypot(apical[:, 0], apical[:, 1]) > 0
    turn = np.where(polar, np.arctan2(apical[:, 0], apical[:, 1]) + rng.normal(0, 0.3, n), field)
    turn = np.where(looks.free, rng.uniform(-np.pi, np.pi, n), turn)
    shift = np.where(looks.free, 0.0, -1.2 + rng.normal(0, 0.5, n))[:, None] / mpp
    return Poses((tissue.centres + shift * apical).astype(np.float32), turn.astype(np.float32), apical)


def _towards_lumen(tissue: Tissue) -> FloatArray:
    """Unit vector to the nearest lumen at every second px: ``(y, x, 2)`` float32, 0 out of reach."""
    if not (tissue.region[::2, ::2] == LUMEN).any():
        return np.zeros((*tissue.region[::2, ::2].shape, 2), np.float32)
    distance, nearest = ndimage.distance_transform_edt(tissue.region[::2, ::2] != LUMEN, return_indices=True)
    grid = np.indices(distance.shape)
    vector = np.moveaxis(nearest - grid, 0, -1) / np.maximum(distance, 1)[..., None]
    vector[2 * distance * tissue.mpp > _APICAL] = 0
    return vector.astype(np.float32)


def _grain(rng: np.random.Generator, tissue: Tissue, depth: FloatArray) -> FloatArray:
    """Direction of spindles: around the epithelium near it, wavy elsewhere; ``(y, x)`` rad."""
    relief = depth + 14 * smooth_noise(rng, tissue.region.shape, 30 / tissue.mpp)
    dy, dx = np.gradient(ndimage.gaussian_filter(relief, 5 / tissue.mpp, truncate=2.5))
    return np.arctan2(dx, -dy).astype(np.float32)


def outside(tissue: Tissue, step: int = 1) -> FloatArray:
    """Distance to the epithelium or a vessel's inside in µm at every `step`-th px: float32."""
    solid = np.isin(tissue.region[::step, ::step], (EPITHELIUM, LUMEN))
    if not solid.any():
        return np.full(solid.shape, 1e3, np.float32)
    return (ndimage.distance_transform_edt(~solid) * tissue.mpp * step).astype(np.float32)


@dataclass(frozen=True)
class _Stamp:
    """One nucleus on its window: `window` slices, `rho` 1 on the outline, axes in µm."""

    window: tuple[slice, slice]
    rho: FloatArray
    along: FloatArray
    across: FloatArray
    short: float


def _stamp(i: int, looks: Morphology, poses: Poses, bumps: FloatArray, tissue: Tissue) -> _Stamp | None:
    """Elliptic distance of nucleus `i` with an uneven outline; None if it lies outside."""
    ratio = float(np.sqrt(looks.ratio[i]))
    long, short = looks.diameter[i] / 2 * ratio, looks.diameter[i] / 2 / ratio
    reach = (long * _REACH + looks.halo[i] + 1) / tissue.mpp
    (y, x), (height, width) = poses.centres[i], tissue.cells.shape
    top, left = max(int(y - reach), 0), max(int(x - reach), 0)
    low, right = min(int(y + reach) + 2, height), min(int(x + reach) + 2, width)
    if top >= low or left >= right:
        return None
    dy = ((np.arange(top, low, dtype=np.float32) + 0.5 - y) * tissue.mpp)[:, None]
    dx = ((np.arange(left, right, dtype=np.float32) + 0.5 - x) * tissue.mpp)[None]
    sin, cos = np.sin(poses.turn[i]), np.cos(poses.turn[i])
    along, across = dy * sin + dx * cos, dy * cos - dx * sin
    u, v = along / long, across / short
    v = v + bumps[i, 0] * (u * u - 0.4)
    angle = np.arctan2(v, u)
    outline = np.ones_like(u)
    for k, order in enumerate(_HARMONICS):
        outline += bumps[i, 1 + k] * np.cos(order * angle + bumps[i, 5 + k])
    rho = np.hypot(u, v) / outline
    return _Stamp((slice(top, low), slice(left, right)), rho, along, across, float(short))


def _bumps(rng: np.random.Generator, looks: Morphology) -> FloatArray:
    """Bend, four amplitudes and four phases of each outline: ``(n + 1, 9)``."""
    n = len(looks.diameter)
    amplitude = looks.uneven[:, None] * rng.standard_normal((n, 4)) / np.sqrt(_HARMONICS - 1)
    bend = np.clip(3.0 * looks.uneven * rng.standard_normal(n), -0.5, 0.5)[:, None]
    return np.concatenate([bend, amplitude, rng.uniform(0, 2 * np.pi, (n, 4))], 1).astype(np.float32)


def _texture(rng: np.random.Generator, tissue: Tissue) -> tuple[FloatArray, FloatArray]:
    """Fine and coarse grain of chromatin, each ``(y, x)`` with variance 1."""
    shape = tissue.cells.shape
    fine = smooth_noise(rng, shape, 0.45 / tissue.mpp)
    coarse = 0.6 * smooth_noise(rng, shape, 0.7 / tissue.mpp) + 0.8 * smooth_noise(
        rng, shape, 1.2 / tissue.mpp
    )
    return fine, coarse


def _nucleoli(rng: np.random.Generator, stamp: _Stamp, number: int) -> AnyArray:
    """Dark spots of about 1 µm inside a nucleus."""
    spots: AnyArray = np.zeros_like(stamp.rho)
    for _ in range(number):
        y, x = rng.uniform(-0.45, 0.45, 2) * stamp.short
        size = rng.uniform(0.45, 0.8)
        spots += np.exp(-((stamp.across - y) ** 2 + (stamp.along - x) ** 2) / size**2)
    return spots


def _profile(i: int, looks: Morphology, stamp: _Stamp, *, grain: FloatArray, spots: AnyArray) -> AnyArray:
    """Density over one nucleus: open in the middle, darker along the membrane, clumped."""
    rim = min(looks.rim[i], 0.8)  # more would be a ring
    edge = np.exp(-(((1 - stamp.rho) * stamp.short - 0.45) ** 2) / 0.35)
    body = 1 - 0.45 * rim + 1.1 * rim * edge
    body = body * np.exp(looks.clumps[i] * grain - looks.clumps[i] ** 2 / 2) + 0.7 * spots
    return looks.haematoxylin[i] * body


def paint_nuclei(rng: np.random.Generator, tissue: Tissue, looks: Morphology, poses: Poses) -> Chromatin:
    """Paint nuclei, and the thin cytoplasm of round cells, in place of those of the plan.

    Parameters
    ----------
    rng
        Source of randomness.
    tissue
        Cells and types; its own nuclei are not used.
    looks, poses
        From :func:`~nimbus_sd.simulation.morphology.draw_morphology` and :func:`pose_nuclei`.
    """
    shape = tissue.cells.shape
    fine, coarse = _texture(rng, tissue)
    bumps = _bumps(rng, looks)
    round_cells = looks.free
    cells = np.where(round_cells[tissue.cells], 0, tissue.cells).astype(np.int32)
    density, cover = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    nuclei, halo = np.zeros(shape, bool), np.zeros(shape, bool)
    present = np.bincount(tissue.cells.ravel(), minlength=tissue.n_cells + 1) > 0
    for i in (np.flatnonzero(present[1:]) + 1).tolist():
        stamp = _stamp(i, looks, poses, bumps, tissue)
        if stamp is None:
            continue
        at = stamp.window
        mix = looks.grain[i]
        grain = np.sqrt(max(1 - mix, 0)) * fine[at] + np.sqrt(min(mix, 1)) * coarse[at]
        spots = _nucleoli(rng, stamp, int(looks.nucleoli[i]))
        depth = (1 - stamp.rho) * stamp.short
        part = 1 / (1 + np.exp(np.clip(-depth / (_SOFT / 2), -30, 30)))
        dye = part * _profile(i, looks, stamp, grain=grain, spots=spots)
        density[at] += dye * (1 - 0.55 * cover[at])
        cover[at] = np.maximum(cover[at], part)
        if round_cells[i]:
            around = (depth > -looks.halo[i]) & ~nuclei[at]
            cells[at][around] = i
            halo[at] |= around
        inside = stamp.rho < 1
        cells[at][inside] = i
        nuclei[at] |= inside
    grown = replace(tissue, cells=cells, nuclei=nuclei, edge=border_distance(cells, tissue.mpp))
    return Chromatin(grown, density, cover, halo & ~nuclei)
