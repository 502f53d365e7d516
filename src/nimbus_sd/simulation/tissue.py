"""Tissue geometry: regions, cells of every shape and type, nuclei, borders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from nimbus_sd.simulation._types import AnyArray, BoolArray, ByteArray, FloatArray, IntArray
from nimbus_sd.simulation.config import CELL_TYPES, TissueConfig
from nimbus_sd.simulation.noise import smooth_noise

SPARSE, EPITHELIUM, AGGREGATE, STROMA, LUMEN = range(5)
_NEIGHBOURS = 4
_REACH = 16.0


@dataclass(frozen=True)
class Tissue:
    """True cells of one field.

    Parameters
    ----------
    cells
        ``(y, x)`` int32, 0 outside cells, else 1..n.
    nuclei
        ``(y, x)`` bool.
    edge
        ``(y, x)`` float32, µm to the nearest border of the own cell, 0 outside.
    angle
        ``(y, x)`` float32, direction from the cell's centre in rad.
    region
        ``(y, x)`` uint8: sparse, epithelium, aggregate, stroma, lumen.
    types
        ``(n + 1,)`` uint8 index into :data:`CELL_TYPES`; entry 0 has no meaning.
    centres
        ``(n + 1, 2)`` float32 ``(y, x)`` in px.
    mpp
        µm per px.
    """

    cells: IntArray
    nuclei: BoolArray
    edge: FloatArray
    angle: FloatArray
    region: ByteArray
    types: ByteArray
    centres: FloatArray
    mpp: float

    @property
    def n_cells(self) -> int:
        """Number of true cells."""
        return len(self.types) - 1


@dataclass(frozen=True)
class _Seeds:
    """Cells before they are drawn: centres (n, 2) and half axes in px, orientation in rad."""

    centres: FloatArray
    long: FloatArray
    short: FloatArray
    turn: FloatArray
    region: ByteArray


def _top_share(values: FloatArray, among: BoolArray, share_of_all: float) -> BoolArray:
    """The pixels of `among` with the highest values, so that they cover `share_of_all` of the field."""
    n = int(among.sum())
    wanted = min(share_of_all * values.size / max(n, 1), 1.0)
    if wanted <= 0:
        return np.zeros_like(among)
    return among & (values >= np.quantile(values[among], 1 - wanted))


def draw_regions(
    rng: np.random.Generator, shape: tuple[int, int], config: TissueConfig, mpp: float
) -> ByteArray:
    """Lay out tissue: ``(y, x)`` uint8 of region codes."""
    patch = config.patch / mpp
    relief = smooth_noise(rng, shape, patch) + 0.25 * smooth_noise(rng, shape, max(patch / 5, 2))
    other = smooth_noise(rng, shape, patch)
    region = np.full(shape, SPARSE, np.uint8)
    free = np.ones(shape, bool)
    for code, values, share in (
        (EPITHELIUM, relief, config.epithelium),
        (AGGREGATE, other, config.aggregate),
        (STROMA, -relief, config.stroma),
    ):
        chosen = _top_share(values, free, share)
        region[chosen] = code
        free &= ~chosen
    depth = ndimage.distance_transform_edt(region[::2, ::2] == EPITHELIUM).astype(np.float32) * 2 * mpp
    depth = depth.repeat(2, 0).repeat(2, 1)[: shape[0], : shape[1]]
    inner = depth > config.epithelial_diameter * 1.2
    holes = smooth_noise(rng, shape, 22 / mpp)
    region[inner & (holes > np.quantile(holes, 1 - config.lumina))] = LUMEN
    return region


def _grid(rng: np.random.Generator, shape: tuple[int, int], spacing: float) -> FloatArray:
    """Hexagonal grid with jitter: (n, 2) px."""
    rows = np.arange(-spacing, shape[0] + spacing, spacing * 0.87)
    columns = np.arange(-spacing, shape[1] + spacing, spacing)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    x = x + (np.arange(len(rows)) % 2 * spacing / 2)[:, None]
    points = np.stack([y.ravel(), x.ravel()], 1) + rng.uniform(0, spacing, 2)
    points += rng.uniform(-0.36, 0.36, points.shape) * spacing
    points = points.astype(np.float32)
    return points[((points >= 0) & (points < np.asarray(shape))).all(1)]


def _place(rng: np.random.Generator, region: ByteArray, config: TissueConfig, mpp: float) -> _Seeds:
    """Scatter cell centres over the regions and give them sizes and directions."""
    flow = smooth_noise(rng, region.shape, config.patch / mpp) * np.pi
    kinds = {
        # spacing µm, share kept, half axis over half spacing, elongation
        EPITHELIUM: (config.epithelial_diameter, 0.97, 1.25, 1.25),
        AGGREGATE: (config.immune_diameter, 0.95, 1.2, 1.15),
        STROMA: (config.stroma_spacing, 0.8, 0.95, config.elongation),
        SPARSE: (2.2 * config.immune_diameter, 0.35, 0.6, 1.4),
        LUMEN: (14.0, 0.02, 0.6, 1.2),
    }
    parts = []
    for code, (spacing, keep, fill, stretch) in kinds.items():
        points = _grid(rng, region.shape, spacing / mpp)
        at = points.astype(int)
        points = points[(region[at[:, 0], at[:, 1]] == code) & (rng.random(len(points)) < keep)]
        n = len(points)
        ratio = 1 + (stretch - 1) * rng.gamma(4, 0.25, n)
        half = np.clip(spacing / 2 * fill * rng.lognormal(0, 0.16, n), 2.4, 8.5) / mpp
        at = points.astype(int)
        turn = flow[at[:, 0], at[:, 1]] + rng.normal(0, 0.35, n)
        parts.append((points, half * np.sqrt(ratio), half / np.sqrt(ratio), turn, np.full(n, code, np.uint8)))
    centres, long, short, turn, codes = (np.concatenate(p) for p in zip(*parts, strict=True))
    order = rng.permutation(len(centres))
    crowded = cKDTree(centres[order]).query_pairs(0.55 * config.immune_diameter / mpp, output_type="ndarray")
    keep_mask = np.ones(len(order), bool)
    keep_mask[crowded[:, 1]] = False
    order = order[keep_mask]
    return _Seeds(
        centres[order],
        long[order].astype(np.float32),
        short[order].astype(np.float32),
        turn[order].astype(np.float32),
        codes[order],
    )


def _ellipse(offset: AnyArray, long: AnyArray, short: AnyArray, turn: AnyArray) -> AnyArray:
    """Elliptic distance of offsets (..., 2): 0 at the centre, 1 on the outline."""
    sin, cos = np.sin(turn), np.cos(turn)
    along = offset[..., 0] * sin + offset[..., 1] * cos
    across = offset[..., 0] * cos - offset[..., 1] * sin
    return np.hypot(along / long, across / short)


def _draw(
    rng: np.random.Generator, seeds: _Seeds, shape: tuple[int, int], nucleus: float, mpp: float
) -> tuple[IntArray, BoolArray, FloatArray]:
    """Paint cells: owner (y, x) int32, nuclei (y, x) bool, angle (y, x) float32."""
    pixels = np.moveaxis(np.mgrid[: shape[0], : shape[1]], 0, -1).reshape(-1, 2).astype(np.float32) + 0.5
    bent = pixels + np.stack([smooth_noise(rng, shape, 3 / mpp).ravel() for _ in range(2)], 1) * (0.55 / mpp)
    n = len(seeds.centres)
    if n == 0:
        return np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, np.float32)
    _, near = cKDTree(seeds.centres).query(bent, k=min(_NEIGHBOURS, n), distance_upper_bound=_REACH / mpp)
    near = near.reshape(len(pixels), -1)
    known = np.minimum(near, n - 1)
    distance = _ellipse(
        bent[:, None] - seeds.centres[known], seeds.long[known], seeds.short[known], seeds.turn[known]
    )
    distance[near == n] = np.inf
    best = distance.argmin(1)
    rows = np.arange(len(pixels))
    owner = known[rows, best]
    inside = distance[rows, best] <= 1
    offset = (bent - seeds.centres[owner]).astype(np.float32)
    sway = rng.normal(0, 0.12, (n, 2)).astype(np.float32) * seeds.short[:, None]
    size = (nucleus * rng.normal(1, 0.07, n)).astype(np.float32)
    core = _ellipse(
        offset - sway[owner], (seeds.long * size)[owner], (seeds.short * size)[owner], seeds.turn[owner]
    )
    angle = np.arctan2(offset[:, 0], offset[:, 1]).astype(np.float32)
    cells = np.where(inside, owner + 1, 0).astype(np.int32)
    return cells.reshape(shape), (inside & (core < 1)).reshape(shape), angle.reshape(shape)


def border_distance(labels: AnyArray, mpp: float) -> FloatArray:
    """Distance of every labelled pixel's centre to its label's outline in µm, 0 in the background."""
    same = np.ones(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        before: list[slice] = [slice(None), slice(None)]
        after: list[slice] = [slice(None), slice(None)]
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        same[tuple(before)] &= ~differs
        same[tuple(after)] &= ~differs
    depth = ndimage.distance_transform_edt(same & (labels > 0)).astype(np.float32)
    return np.where(labels > 0, (depth + 0.5) * mpp, 0).astype(np.float32)


def _assign_types(rng: np.random.Generator, seeds: _Seeds, region: ByteArray, mpp: float) -> ByteArray:
    """Give each cell a type that fits its region and neighbourhood."""
    code = {name: i for i, name in enumerate(CELL_TYPES)}
    mixes = {
        EPITHELIUM: {"epithelial": 0.93, "CD8 T": 0.035, "macrophage": 0.02, "CD4 T": 0.015},
        STROMA: {"fibroblast": 0.5, "macrophage": 0.13, "CD4 T": 0.07, "CD8 T": 0.06, "mast": 0.04}
        | {"endothelial": 0.09, "smooth muscle": 0.07, "dendritic": 0.02, "B": 0.02},
        SPARSE: {
            "macrophage": 0.3,
            "fibroblast": 0.3,
            "CD4 T": 0.1,
            "CD8 T": 0.1,
            "mast": 0.1,
            "dendritic": 0.1,
        },
        LUMEN: {"macrophage": 0.6, "epithelial": 0.4},
    }
    zones = {
        True: {"B": 0.8, "CD4 T": 0.1, "Treg": 0.01, "dendritic": 0.05, "macrophage": 0.04},
        False: {"CD4 T": 0.42, "CD8 T": 0.25, "B": 0.1, "Treg": 0.05, "macrophage": 0.1, "dendritic": 0.08},
    }
    at = seeds.centres.astype(int)
    zone = smooth_noise(rng, region.shape, 35 / mpp)[at[:, 0], at[:, 1]] > 0.1
    types = np.zeros(len(at), np.uint8)

    def fill(chosen: BoolArray, mix: dict[str, float]) -> None:
        share = np.array(list(mix.values()))
        names = np.array([code[name] for name in mix], np.uint8)
        types[chosen] = rng.choice(names, int(chosen.sum()), p=share / share.sum())

    for kind, mix in mixes.items():
        fill(seeds.region == kind, mix)
    for is_b_zone, mix in zones.items():
        fill((seeds.region == AGGREGATE) & (zone == is_b_zone), mix)
    outside = ndimage.distance_transform_edt(np.isin(region, (EPITHELIUM, LUMEN))[::2, ::2]) * 2 * mpp
    rim = outside[at[:, 0] // 2, at[:, 1] // 2] < 5
    types[(types == code["epithelial"]) & rim & (rng.random(len(at)) < 0.75)] = code["basal"]
    muscle = smooth_noise(rng, region.shape, 30 / mpp)[at[:, 0], at[:, 1]] > 1.2
    types[(seeds.region == STROMA) & muscle & (rng.random(len(at)) < 0.7)] = code["smooth muscle"]
    vessel = np.abs(smooth_noise(rng, region.shape, 45 / mpp)[at[:, 0], at[:, 1]]) < 0.06
    types[(seeds.region == STROMA) & vessel] = code["endothelial"]
    return types


def grow_tissue(rng: np.random.Generator, shape: tuple[int, int], config: TissueConfig, mpp: float) -> Tissue:
    """Make one field of tissue.

    Parameters
    ----------
    rng
        Source of randomness.
    shape
        ``(y, x)`` in px.
    config
        Shares and sizes.
    mpp
        µm per px.
    """
    region = draw_regions(rng, shape, config, mpp)
    seeds = _place(rng, region, config, mpp)
    cells, nuclei, angle = _draw(rng, seeds, shape, config.nucleus, mpp)
    types = np.concatenate([[0], _assign_types(rng, seeds, region, mpp)]).astype(np.uint8)
    centres = np.concatenate([np.zeros((1, 2), np.float32), seeds.centres])
    edge = border_distance(cells, mpp)
    return Tissue(cells, nuclei, edge, angle, region, types, centres, mpp)
