"""Who lives where in a section: leukocytes in wanted numbers, in aggregates, stroma and epithelium."""

from __future__ import annotations

import numpy as np

from nimbus_sd.simulation._types import BoolArray, ByteArray
from nimbus_sd.simulation.config import CELL_TYPES
from nimbus_sd.simulation.noise import smooth_noise
from nimbus_sd.simulation.tissue import AGGREGATE, EPITHELIUM, LUMEN, SPARSE, STROMA, Tissue

CODE = {name: i for i, name in enumerate(CELL_TYPES)}
#: Cell types that express CD45.
LEUKOCYTES = ("B", "CD4 T", "Treg", "CD8 T", "macrophage", "dendritic", "mast")

_ZONES = {
    # follicles, T zones and their rims
    "B": {"B": 0.74, "CD4 T": 0.13, "Treg": 0.01, "CD8 T": 0.03, "dendritic": 0.04, "macrophage": 0.05},
    "T": {"CD4 T": 0.44, "CD8 T": 0.24, "B": 0.12, "Treg": 0.05, "macrophage": 0.09, "dendritic": 0.06},
}
_SCATTERED = {
    STROMA: {"CD4 T": 0.27, "CD8 T": 0.22, "Treg": 0.04, "macrophage": 0.27}
    | {"B": 0.09, "mast": 0.06, "dendritic": 0.05},
    SPARSE: {"macrophage": 0.4, "CD4 T": 0.2, "CD8 T": 0.15, "mast": 0.15, "dendritic": 0.1},
    EPITHELIUM: {"CD8 T": 0.62, "CD4 T": 0.14, "macrophage": 0.18, "dendritic": 0.06},
    LUMEN: {"macrophage": 1.0},
}
# chance of a leukocyte, relative to a cell of the stroma
_WEIGHT = {STROMA: 1.0, SPARSE: 0.8, EPITHELIUM: 0.25, LUMEN: 0.2}
_AGGREGATED = 0.94
_MIN_SCATTERED = 0.3


def _draw(rng: np.random.Generator, n: int, mix: dict[str, float]) -> ByteArray:
    share = np.array(list(mix.values()))
    return rng.choice(np.array([CODE[name] for name in mix], np.uint8), n, p=share / share.sum())


def _without_leukocytes(types: ByteArray, region: ByteArray) -> ByteArray:
    """Structural cells where the tissue had leukocytes."""
    immune = np.isin(types, [CODE[name] for name in LEUKOCYTES])
    inside = np.isin(region, (EPITHELIUM, LUMEN))
    return np.where(immune, np.where(inside, CODE["epithelial"], CODE["fibroblast"]), types).astype(np.uint8)


def _scatter(rng: np.random.Generator, tissue: Tissue, region: ByteArray, wanted: int) -> BoolArray:
    """Choose `wanted` cells outside aggregates, in clusters: ``(n,)`` bool."""
    at = tissue.centres[1:].astype(int)
    crowd = smooth_noise(rng, tissue.cells.shape, 45 / tissue.mpp)[at[:, 0], at[:, 1]]
    weight = np.zeros(len(region))
    for code, value in _WEIGHT.items():
        weight[region == code] = value
    # the highest of log weight + Gumbel noise are a sample without replacement by weight
    with np.errstate(divide="ignore"):
        rank = np.log(weight) + 0.9 * crowd + rng.gumbel(size=len(region))
    chosen = np.zeros(len(region), bool)
    chosen[np.argsort(-rank, kind="stable")[:wanted]] = True
    return chosen & (weight > 0)


def populate(rng: np.random.Generator, tissue: Tissue, immune: float) -> ByteArray:
    """Give each cell a type, so that a share `immune` of all are leukocytes.

    Aggregates are follicles of B cells between zones of T cells; leukocytes elsewhere come in
    loose clusters, most of those within epithelium CD8 T cells.

    Parameters
    ----------
    rng
        Source of randomness.
    tissue
        From :func:`~nimbus_sd.simulation.tissue.grow_tissue`; its structural types are kept.
    immune
        Share of leukocytes (more where the aggregates alone hold more).

    Returns
    -------
    ``(n + 1,)`` uint8 index into :data:`CELL_TYPES`; entry 0 has no meaning.
    """
    at = tissue.centres[1:].astype(int)
    region = tissue.region[at[:, 0], at[:, 1]]
    types = _without_leukocytes(tissue.types[1:], region)
    gathered = (region == AGGREGATE) & (rng.random(len(region)) < _AGGREGATED)
    follicle = smooth_noise(rng, tissue.cells.shape, 30 / tissue.mpp)[at[:, 0], at[:, 1]] > 0.3
    for zone, mix in zip((follicle, ~follicle), _ZONES.values(), strict=True):
        chosen = gathered & zone
        types[chosen] = _draw(rng, int(chosen.sum()), mix)
    least = _MIN_SCATTERED * immune * len(region)
    wanted = round(max(immune * len(region) - int(gathered.sum()), least))
    scattered = _scatter(rng, tissue, region, wanted)
    for code, mix in _SCATTERED.items():
        chosen = scattered & (region == code)
        types[chosen] = _draw(rng, int(chosen.sum()), mix)
    return np.concatenate([[0], types]).astype(np.uint8)
