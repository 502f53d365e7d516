"""What can be asked of the simulator: frozen, checked descriptions of tissue, masks, markers and cameras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nimbus_sd._core.errors import InputError

CELL_TYPES = (
    "epithelial",
    "basal",
    "B",
    "CD4 T",
    "Treg",
    "CD8 T",
    "macrophage",
    "dendritic",
    "mast",
    "endothelial",
    "fibroblast",
    "smooth muscle",
)
PLATFORMS = ("ions", "ions_denoised", "fluorescence8", "fluorescence16", "float")


def _check(owner: object, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if not low <= value <= high:
        msg = f"{type(owner).__name__}.{name} must lie in [{low:g}, {high:g}], got {value!r}"
        raise InputError(msg)


@dataclass(frozen=True)
class TissueConfig:
    """Shares of tissue and the size of what lives in it.

    Parameters
    ----------
    epithelium, aggregate, stroma
        Shares of the area; what is left is sparse tissue.
    lumina
        Share of the inner epithelium that is open lumen.
    patch
        Size of tissue patches in µm.
    epithelial_diameter, immune_diameter
        Cell diameters in µm.
    stroma_spacing
        Distance between stromal cells in µm.
    elongation
        Long over short axis of stromal cells.
    nucleus
        Nuclear over cell diameter.
    """

    epithelium: float = 0.3
    aggregate: float = 0.25
    stroma: float = 0.3
    lumina: float = 0.25
    patch: float = 90.0
    epithelial_diameter: float = 11.0
    immune_diameter: float = 7.5
    stroma_spacing: float = 14.0
    elongation: float = 2.2
    nucleus: float = 0.68

    def __post_init__(self) -> None:
        for name in ("epithelium", "aggregate", "stroma", "lumina"):
            _check(self, name, 0, 1)
        if self.epithelium + self.aggregate + self.stroma > 1 + 1e-9:
            msg = "TissueConfig: epithelium + aggregate + stroma must not exceed 1"
            raise InputError(msg)
        _check(self, "patch", 10, 2000)
        _check(self, "epithelial_diameter", 5, 16)
        _check(self, "immune_diameter", 5, 16)
        _check(self, "stroma_spacing", 5, 60)
        _check(self, "elongation", 1, 5)
        _check(self, "nucleus", 0.3, 0.95)


@dataclass(frozen=True)
class SegmentationConfig:
    """How far the labels that the model is given differ from the true cells.

    Parameters
    ----------
    nuclei
        Segment nuclei instead of cells (use with `dilate`).
    dilate, erode
        Growth into the background, loss at the border, in µm.
    shift
        Largest registration error in µm.
    wobble
        Amplitude of uneven borders in µm.
    merged, split, missed
        Shares of cells.
    """

    nuclei: bool = False
    dilate: float = 0.0
    erode: float = 0.0
    shift: float = 0.0
    wobble: float = 0.0
    merged: float = 0.0
    split: float = 0.0
    missed: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dilate", "erode", "shift", "wobble"):
            _check(self, name, 0, 10)
        for name in ("merged", "split", "missed"):
            _check(self, name, 0, 1)


@dataclass(frozen=True)
class Marker:
    """One channel: who expresses it, where in the cell, how strongly.

    Parameters
    ----------
    name
        Channel name.
    types
        Cell type to the probability that a cell of it is positive.
    membrane, cytoplasm, nucleus, puncta
        Weights of the compartments.
    cap
        Share of membrane staining that sits on one side of the cell.
    level
        Median level of positive cells, 1 is bright.
    spread
        Standard deviation of the log level.
    dim
        Share of positive cells in the dim tail (a tenth to a half of the level).
    ecm
        Level of extracellular fibres in the stroma.
    secreted
        Reach in µm of signal that leaves the cell.
    patchy
        Spatial modulation of the probability: 0 none, 1 whole patches on or off.
    baseline
        Level of negative cells, as a share of `level`.
    ragged
        How far in µm the stain strays from the cell's plan (processes, tangential cuts).
    faint
        Cell type to the probability that a negative cell of it expresses a little all the same.
    faint_level
        Level of such cells, as a share of `level`.
    """

    name: str
    types: Mapping[str, float] = field(default_factory=dict)
    membrane: float = 0.0
    cytoplasm: float = 0.0
    nucleus: float = 0.0
    puncta: float = 0.0
    cap: float = 0.0
    level: float = 0.5
    spread: float = 0.5
    dim: float = 0.15
    ecm: float = 0.0
    secreted: float = 0.0
    patchy: float = 0.0
    baseline: float = 0.0
    ragged: float = 0.0
    faint: Mapping[str, float] = field(default_factory=dict)
    faint_level: float = 0.1

    def __post_init__(self) -> None:
        unknown = sorted((set(self.types) | set(self.faint)) - set(CELL_TYPES))
        if unknown:
            msg = f"Marker {self.name!r}: unknown cell types {unknown}; valid: {', '.join(CELL_TYPES)}"
            raise InputError(msg)
        for name in ("types", "faint"):
            given = getattr(self, name)
            if not all(0 <= p <= 1 for p in given.values()):
                msg = f"Marker {self.name!r}: probabilities in {name!r} must lie in [0, 1], got {dict(given)}"
                raise InputError(msg)
        for name in ("membrane", "cytoplasm", "nucleus", "puncta", "level", "spread", "ecm"):
            _check(self, name, 0, 10)
        for name in ("cap", "dim", "patchy", "baseline", "faint_level"):
            _check(self, name, 0, 1)
        for name in ("secreted", "ragged"):
            _check(self, name, 0, 30)


@dataclass(frozen=True)
class PlatformConfig:
    """How signal becomes numbers.

    Parameters
    ----------
    kind
        ``"ions"``: uint16 counts as in MIBI or imaging mass cytometry;
        ``"ions_denoised"``: the same, uint8, isolated counts removed;
        ``"fluorescence8"``, ``"fluorescence16"``: camera values;
        ``"float"``: unmixed float32 intensities.
    counts
        Ions or photo-electrons per µm² at level 1.
    blur
        Standard deviation of the point spread in µm.
    background
        Level of smooth, tissue-correlated background.
    bleed
        Level of nuclear bleed-through.
    gradient
        Relative amplitude of uneven illumination.
    hot
        Hot pixels per 1,000 µm².
    debris
        Bright specks per field of 512 x 512 µm.
    denoise
        Counts per µm² of neighbourhood below which denoising removes counts.
    """

    kind: str = "ions_denoised"
    counts: float = 20.0
    blur: float = 0.5
    background: float = 0.002
    bleed: float = 0.0
    gradient: float = 0.0
    hot: float = 0.0
    debris: float = 0.0
    denoise: float = 0.8

    def __post_init__(self) -> None:
        if self.kind not in PLATFORMS:
            msg = f"PlatformConfig.kind must be one of {', '.join(PLATFORMS)}, got {self.kind!r}"
            raise InputError(msg)
        _check(self, "counts", 0.01, 1e6)
        _check(self, "blur", 0, 10)
        for name in ("background", "bleed", "hot", "debris", "denoise"):
            _check(self, name, 0, 1000)
        _check(self, "gradient", 0, 0.9)
