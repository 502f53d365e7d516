"""Haematoxylin and eosin in a section: how much of either dye lies over each pixel."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from nimbus_sd.simulation._types import AnyArray, BoolArray, FloatArray
from nimbus_sd.simulation.lymphocytes import CODE
from nimbus_sd.simulation.morphology import Morphology
from nimbus_sd.simulation.noise import smooth_noise
from nimbus_sd.simulation.nuclei import Chromatin, Poses
from nimbus_sd.simulation.tissue import AGGREGATE, EPITHELIUM, LUMEN, SPARSE, STROMA, Tissue

_RED = 0.062
_GOBLET = 0.16
_EPITHELIA = (CODE["epithelial"], CODE["basal"])
_SPINDLES = (CODE["fibroblast"], CODE["endothelial"])
_MUSCLE = (CODE["smooth muscle"],)


def stain_dyes(
    rng: np.random.Generator,
    chromatin: Chromatin,
    looks: Morphology,
    *,
    poses: Poses,
    depth: FloatArray,
    red: FloatArray,
) -> FloatArray:
    """Lay the dyes over a section.

    Parameters
    ----------
    rng
        Source of randomness.
    chromatin, looks, poses
        Cells.
    depth
        From :func:`~nimbus_sd.simulation.nuclei.outside`.
    red
        Red blood cells, ``(y, x)`` in [0, 1].

    Returns
    -------
    ``(y, x, 3)`` float32: haematoxylin, eosin and haemoglobin in the units of
    :mod:`nimbus_sd._core.stain`, about 0.1 in a dark nucleus, 0.02 in pale stroma.
    """
    tissue = chromatin.tissue
    soft = 0.5 / tissue.mpp
    between = _matrix(rng, tissue, depth)
    eosin, basophilia = _cytoplasm(rng, chromatin, looks)
    goblets = _goblets(rng, tissue, poses)
    # bodies of spindles can hardly be told from the fibres around them
    own = np.select([_of_types(tissue, _SPINDLES), _of_types(tissue, _MUSCLE)], [0.2, 0.6], 1.0)
    own = ndimage.gaussian_filter(np.where(tissue.cells > 0, own, 0).astype(np.float32), soft, truncate=3.0)
    between = between * (1 - 0.55 * _shrinkage(tissue, looks))
    eosin = own * eosin * (1 - 0.75 * goblets) + (1 - own) * between * (1 - 0.6 * goblets)
    basophilia = basophilia * own * (1 - goblets) + 0.007 * goblets
    free = 1 - chromatin.cover
    thick = 1 + 0.08 * smooth_noise(rng, between.shape, 60 / tissue.mpp)
    h = (chromatin.density + basophilia * free) * thick
    e = eosin * (free + 0.55 * chromatin.cover) * thick
    return np.stack([h, e, _RED * red * free], -1).astype(np.float32)


def _matrix(rng: np.random.Generator, tissue: Tissue, outer: FloatArray) -> FloatArray:
    """Eosin between cells: collagen, loose strands, white lumen."""
    shape, mpp = tissue.cells.shape, tissue.mpp
    collagen = _collagen(rng, tissue, outer)
    strands = np.exp(-((smooth_noise(rng, shape, 9 / mpp) / 0.22) ** 2))
    strands *= np.exp(-((smooth_noise(rng, shape, 25 / mpp) / 0.8) ** 2))
    mucus = np.clip(smooth_noise(rng, shape, 7 / mpp) - 1.0, 0, 1)
    level = np.select(
        [tissue.region == code for code in (STROMA, SPARSE, AGGREGATE, EPITHELIUM, LUMEN)],
        [
            collagen,
            0.35 * collagen + 0.012 * strands,
            0.006 + 0.35 * collagen,
            0.023 * _grain(rng, tissue),
            0.0035 * mucus,
        ],
    )
    level = ndimage.gaussian_filter(level.astype(np.float32), 0.35 / mpp, truncate=3.0)
    return level * _cleft(rng, tissue, outer)


def _collagen(rng: np.random.Generator, tissue: Tissue, outer: FloatArray) -> FloatArray:
    """Wavy bundles that run around the epithelium: ``(y, x)`` float32 units of eosin."""
    shape, mpp = tissue.cells.shape, tissue.mpp
    depth = np.minimum(outer, 400) + 22 * smooth_noise(rng, shape, 45 / mpp)
    wave = depth + 3.2 * smooth_noise(rng, shape, 12 / mpp)
    thick = np.cos(2 * np.pi * wave / 7.0 + 3.0 * smooth_noise(rng, shape, 15 / mpp))
    thin = np.cos(2 * np.pi * wave / 2.6 + 3.0 * smooth_noise(rng, shape, 7 / mpp))
    dense = 1 / (1 + np.exp(-1.5 * smooth_noise(rng, shape, 35 / mpp)))
    speckle = np.exp(0.16 * smooth_noise(rng, shape, 0.8 / mpp))
    seen = 1 / (1 + np.exp(-2.5 * smooth_noise(rng, shape, 10 / mpp)))
    bundles = 0.55 + 0.32 * thick * seen + 0.16 * thin * (1 - 0.7 * seen)
    gaps = np.clip(1.4 - 1.1 * np.clip(smooth_noise(rng, shape, 4.5 / mpp) - 0.4, 0, 1), 0.3, 1)
    return ((0.007 + (0.012 + 0.02 * dense) * bundles) * gaps * speckle).astype(np.float32)


def _cleft(rng: np.random.Generator, tissue: Tissue, near: FloatArray) -> FloatArray:
    """What is left where fixation tore stroma off the epithelium: ``(y, x)`` in [0, 1]."""
    shape, mpp = tissue.cells.shape, tissue.mpp
    torn = smooth_noise(rng, shape, 30 / mpp) > 1.1
    width = 1.6 + 0.8 * smooth_noise(rng, shape, 10 / mpp)
    cleft = torn & (near > 0) & (near < width) & (tissue.cells == 0)
    soft = ndimage.gaussian_filter(cleft.astype(np.float32), 0.4 / mpp, truncate=3.0)
    return 1 - 0.85 * soft


def _cytoplasm(
    rng: np.random.Generator, chromatin: Chromatin, looks: Morphology
) -> tuple[FloatArray, FloatArray]:
    """Eosin and haematoxylin of cytoplasm, each ``(y, x)`` float32."""
    tissue = chromatin.tissue
    shape, mpp = tissue.cells.shape, tissue.mpp
    border = np.exp(-((tissue.edge / 0.55) ** 2)) * _of_types(tissue, _EPITHELIA)
    # each cell's level, run into its neighbours'
    level = ndimage.gaussian_filter(np.where(tissue.cells > 0, looks.eosin[tissue.cells], 0), 0.6 / mpp)
    level /= np.maximum(ndimage.gaussian_filter((tissue.cells > 0).astype(np.float32), 0.6 / mpp), 1e-3)
    eosin = level * _grain(rng, tissue) * (1 + 0.35 * border)
    foam = _of_types(tissue, (CODE["macrophage"],)) * np.clip(smooth_noise(rng, shape, 1.3 / mpp), 0, 1)
    eosin *= 1 - 0.45 * foam
    granules = _of_types(tissue, (CODE["mast"],)) * np.clip(smooth_noise(rng, shape, 0.7 / mpp), 0, 2)
    basophilia = looks.basophilia[tissue.cells] * (1 + granules)
    return eosin.astype(np.float32), (basophilia * (tissue.cells > 0)).astype(np.float32)


def _shrinkage(tissue: Tissue, looks: Morphology) -> FloatArray:
    """Clear rim that fixation leaves around round cells: ``(y, x)`` float32 in [0, 1]."""
    bodies = ndimage.gaussian_filter(looks.free[tissue.cells].astype(np.float32), 0.7 / tissue.mpp)
    return np.clip(2 * bodies, 0, 1).astype(np.float32)


def _grain(rng: np.random.Generator, tissue: Tissue) -> FloatArray:
    """Grain of cytoplasm, about 1: ``(y, x)`` float32."""
    shape, mpp = tissue.cells.shape, tissue.mpp
    fine, coarse = smooth_noise(rng, shape, 0.7 / mpp), smooth_noise(rng, shape, 2.2 / mpp)
    return np.exp(0.13 * fine + 0.16 * coarse)


def _of_types(tissue: Tissue, codes: tuple[int, ...]) -> BoolArray:
    wanted = np.isin(tissue.types, codes)
    wanted[0] = False
    return wanted[tissue.cells]


def _goblets(rng: np.random.Generator, tissue: Tissue, poses: Poses) -> AnyArray:
    """Drops of mucin on the apical side of some epithelial cells: ``(y, x)`` float32 in [0, 1]."""
    shape, mpp = tissue.cells.shape, tissue.mpp
    drops: AnyArray = np.zeros(shape, np.float32)
    polar = (poses.apical**2).sum(1) > 0
    crowd = smooth_noise(rng, shape, 60 / mpp)
    at = tissue.centres.astype(int)
    chance = _GOBLET * np.exp(0.8 * crowd[at[:, 0], at[:, 1]])
    chosen = polar & np.isin(tissue.types, _EPITHELIA) & (rng.random(len(polar)) < chance)
    for i in np.flatnonzero(chosen):
        radius = rng.uniform(2.2, 3.6)
        y, x = poses.centres[i] + poses.apical[i] * rng.uniform(4.2, 5.6) / mpp
        reach = int(2 * radius / mpp) + 1
        window = (
            slice(max(int(y) - reach, 0), max(int(y) + reach + 1, 0)),
            slice(max(int(x) - reach, 0), max(int(x) + reach + 1, 0)),
        )
        rows = (np.arange(shape[0])[window[0]][:, None] + 0.5 - y) * mpp
        columns = (np.arange(shape[1])[window[1]][None] + 0.5 - x) * mpp
        rho = np.hypot(rows, columns) / radius
        drop = 1 / (1 + np.exp(np.clip((rho - 1) * radius / 0.25, -30, 30)))
        drops[window] = np.maximum(drops[window], drop)
    return drops * (tissue.region == EPITHELIUM)
