"""How cells of each type look in haematoxylin and eosin: distributions that overlap, and draws from them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from nimbus_sd.simulation._types import AnyArray, BoolArray, ByteArray, FloatArray
from nimbus_sd.simulation.config import CELL_TYPES


@dataclass(frozen=True)
class Look:
    """Typical cell of a type.

    Parameters
    ----------
    diameter
        Nuclear diameter in µm (of a circle of the same area).
    ratio
        Long over short axis of the nucleus.
    uneven
        Relative amplitude of the nuclear outline.
    haematoxylin
        Density of the chromatin, in units of dye.
    clumps
        Relative amplitude of chromatin texture.
    grain
        Size of the clumps: 0 fine, 1 coarse.
    rim
        Chromatin along the nuclear membrane, relative; open nuclei have much.
    nucleoli
        Expected number.
    halo
        Width in µm of the cytoplasm around the nucleus; 0 fills the cell's place.
    eosin, basophilia
        Dyes of the cytoplasm.
    """

    diameter: float
    ratio: float
    uneven: float
    haematoxylin: float
    clumps: float
    grain: float
    rim: float
    nucleoli: float
    halo: float
    eosin: float
    basophilia: float


LOOKS: dict[str, Look] = {
    "epithelial": Look(7.7, 1.50, 0.06, 0.068, 0.36, 0.70, 0.45, 1.1, 2.4, 0.026, 0.012),
    "basal": Look(7.2, 1.50, 0.06, 0.076, 0.34, 0.60, 0.36, 0.6, 1.8, 0.027, 0.014),
    "B": Look(6.3, 1.13, 0.04, 0.102, 0.36, 0.76, 0.22, 0.4, 0.75, 0.021, 0.012),
    "CD4 T": Look(5.65, 1.12, 0.04, 0.118, 0.24, 0.42, 0.11, 0.1, 0.50, 0.018, 0.007),
    "Treg": Look(5.75, 1.13, 0.04, 0.116, 0.25, 0.44, 0.12, 0.1, 0.55, 0.018, 0.007),
    "CD8 T": Look(6.30, 1.20, 0.05, 0.102, 0.32, 0.56, 0.16, 0.15, 0.85, 0.024, 0.005),
    "macrophage": Look(7.1, 1.65, 0.12, 0.080, 0.29, 0.50, 0.26, 0.3, 2.6, 0.014, 0.003),
    "dendritic": Look(7.0, 1.60, 0.13, 0.082, 0.29, 0.50, 0.24, 0.3, 1.8, 0.016, 0.004),
    "mast": Look(6.0, 1.25, 0.04, 0.092, 0.27, 0.50, 0.18, 0.1, 1.5, 0.025, 0.014),
    "endothelial": Look(5.4, 3.2, 0.05, 0.092, 0.25, 0.44, 0.20, 0.1, 0.8, 0.024, 0.005),
    "fibroblast": Look(5.5, 3.8, 0.06, 0.088, 0.25, 0.44, 0.20, 0.1, 0.9, 0.022, 0.005),
    "smooth muscle": Look(5.9, 4.2, 0.03, 0.078, 0.24, 0.42, 0.20, 0.1, 1.6, 0.046, 0.004),
}
#: Types that lie in a rim of cytoplasm of their own; others fill their place among neighbours.
FREE = ("B", "CD4 T", "Treg", "CD8 T", "macrophage", "dendritic", "mast")
# how often a cell of a type looks as one of another does
_MIMICS: dict[str, dict[str, float]] = {
    "epithelial": {"basal": 0.10, "B": 0.01, "CD8 T": 0.01, "macrophage": 0.01},
    "basal": {"epithelial": 0.10, "CD8 T": 0.015, "B": 0.015, "macrophage": 0.015},
    "B": {"CD4 T": 0.14, "CD8 T": 0.06, "macrophage": 0.03, "epithelial": 0.015},
    "CD4 T": {"CD8 T": 0.10, "B": 0.10, "macrophage": 0.02, "fibroblast": 0.02, "epithelial": 0.01},
    "Treg": {"CD8 T": 0.10, "B": 0.10, "macrophage": 0.02, "fibroblast": 0.02, "epithelial": 0.01},
    "CD8 T": {"CD4 T": 0.10, "B": 0.10, "macrophage": 0.02, "fibroblast": 0.015, "epithelial": 0.02},
    "macrophage": {"fibroblast": 0.06, "epithelial": 0.04, "B": 0.06, "CD8 T": 0.06},
    "dendritic": {"fibroblast": 0.08, "macrophage": 0.2, "epithelial": 0.04, "B": 0.05},
    "mast": {"fibroblast": 0.1, "B": 0.1},
    "endothelial": {"fibroblast": 0.25, "macrophage": 0.03, "CD4 T": 0.03, "CD8 T": 0.02},
    "fibroblast": {"endothelial": 0.15, "macrophage": 0.02, "CD4 T": 0.015, "CD8 T": 0.015},
    "smooth muscle": {"fibroblast": 0.2},
}
_NAMES = tuple(f.name for f in fields(Look))
# standard deviations of the logarithm, the same for all types
_SPREAD = {
    "diameter": 0.095,
    "ratio": 0.10,
    "uneven": 0.35,
    "haematoxylin": 0.17,
    "clumps": 0.28,
    "grain": 0.30,
    "rim": 0.45,
    "nucleoli": 0.0,
    "halo": 0.42,
    "eosin": 0.25,
    "basophilia": 0.55,
}
_ELONGATED = 2.2
_END_ON = 0.16
_SHRUNKEN = 0.035
_RESTLESS = 0.10


@dataclass(frozen=True)
class Morphology:
    """What was drawn for each cell, all ``(n + 1,)`` float32; entry 0 has no meaning.

    The fields of :class:`Look`, as cut by the section; and `free`, bool: round cells, whose
    cytoplasm is a rim around the nucleus.
    """

    free: BoolArray

    diameter: FloatArray
    ratio: FloatArray
    uneven: FloatArray
    haematoxylin: FloatArray
    clumps: FloatArray
    grain: FloatArray
    rim: FloatArray
    nucleoli: FloatArray
    halo: FloatArray
    eosin: FloatArray
    basophilia: FloatArray

    def table(self) -> dict[str, FloatArray]:
        """All of it by name."""
        return {name: getattr(self, name) for name in _NAMES}


def draw_morphology(rng: np.random.Generator, types: ByteArray) -> Morphology:
    """Draw the look of each cell.

    Types differ in their medians, and overlap: some cells look as those of another type do, nuclei
    are cut off centre, spindles are cut
    end-on (small, round and dark as a lymphocyte's), some cells are shrunken, some leukocytes
    activated (larger, paler).

    Parameters
    ----------
    rng
        Source of randomness.
    types
        ``(n + 1,)`` index into :data:`CELL_TYPES`.
    """
    n, shown = len(types), _mimic(rng, types)
    drawn: dict[str, AnyArray] = {}
    for name in _NAMES:
        median = np.array([getattr(LOOKS[kind], name) for kind in CELL_TYPES])[shown]
        drawn[name] = median * np.exp(_SPREAD[name] * rng.standard_normal(n))
    drawn["nucleoli"] = rng.poisson(drawn["nucleoli"])
    drawn["ratio"] = np.maximum(drawn["ratio"], 1.0)
    _cut(rng, drawn)
    _stress(rng, drawn)
    free = np.isin(types, [CELL_TYPES.index(kind) for kind in FREE])
    return Morphology(free=free, **{name: drawn[name].astype(np.float32) for name in _NAMES})


def _mimic(rng: np.random.Generator, types: ByteArray) -> ByteArray:
    """Type that each cell looks like, mostly its own: ``(n + 1,)``."""
    shown = types.copy()
    luck = rng.random(len(types))
    for kind, others in _MIMICS.items():
        mine = types == CELL_TYPES.index(kind)
        ends = np.cumsum(list(others.values()))
        chosen = np.searchsorted(ends, luck[mine])
        codes = np.array([CELL_TYPES.index(other) for other in (*others, kind)], np.uint8)
        shown[mine] = codes[chosen]
    return shown


def _cut(rng: np.random.Generator, drawn: dict[str, AnyArray]) -> None:
    """The section meets nuclei off centre, and spindles at any angle."""
    n = len(drawn["diameter"])
    off = np.where(rng.random(n) < 0.5, rng.uniform(0.0, 0.75, n), 0.0)
    drawn["diameter"] *= np.sqrt(1 - off**2)
    drawn["haematoxylin"] *= 1 - 0.25 * off**2
    end_on = (drawn["ratio"] > _ELONGATED) & (rng.random(n) < _END_ON)
    drawn["diameter"] = np.where(end_on, 0.86 * drawn["diameter"], drawn["diameter"])
    drawn["haematoxylin"] = np.where(end_on, 1.22 * drawn["haematoxylin"], drawn["haematoxylin"])
    drawn["ratio"] = np.where(end_on, rng.uniform(1.02, 1.4, n), drawn["ratio"])


def _stress(rng: np.random.Generator, drawn: dict[str, AnyArray]) -> None:
    """Shrunken cells are small and dark, restless ones large and pale."""
    n = len(drawn["diameter"])
    state = rng.random(n)
    shrunken, restless = state < _SHRUNKEN, state > 1 - _RESTLESS
    for name, less, more in (
        ("diameter", 0.72, 1.16),
        ("haematoxylin", 1.55, 0.82),
        ("clumps", 0.5, 1.2),
        ("eosin", 1.6, 1.0),
        ("rim", 0.4, 1.6),
    ):
        drawn[name] = drawn[name] * np.where(shrunken, less, np.where(restless, more, 1.0))
    drawn["nucleoli"] = np.where(shrunken, 0, drawn["nucleoli"] + restless)
