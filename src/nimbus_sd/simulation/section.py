"""One section stained twice: immunofluorescence, then haematoxylin and eosin, of the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.hierarchy import MARKERS
from nimbus_sd.simulation._types import AnyArray, FloatArray
from nimbus_sd.simulation.config import Marker, PlatformConfig, SegmentationConfig, TissueConfig
from nimbus_sd.simulation.field import image_channel, main_cells, type_names, vary_platform
from nimbus_sd.simulation.he import stain_dyes
from nimbus_sd.simulation.he_stain import Stain, scan
from nimbus_sd.simulation.lymphocytes import LEUKOCYTES, populate
from nimbus_sd.simulation.markers import Compartments, Signal
from nimbus_sd.simulation.morphology import draw_morphology
from nimbus_sd.simulation.nuclei import Chromatin, outside, paint_nuclei, pose_nuclei
from nimbus_sd.simulation.platforms import detect, expose
from nimbus_sd.simulation.segmentation import carry_over, overlap, segment
from nimbus_sd.simulation.silver import integrated_expression
from nimbus_sd.simulation.tissue import grow_tissue
from nimbus_sd.simulation.vessels import open_vessels
from nimbus_sd.simulation.warp import Placement, to_slide

_HOECHST = 6.0  # a level of 0.5 where nuclei are dark
_T_CELLS = dict.fromkeys(("CD4 T", "Treg", "CD8 T"), 1.0)
#: Antibodies: who is positive is decided by the type alone.
SECTION_PANEL: tuple[Marker, ...] = (
    Marker(
        "CD45",
        dict.fromkeys(LEUKOCYTES, 1.0),
        membrane=0.9,
        cytoplasm=0.35,
        nucleus=0.1,
        level=0.6,
        spread=0.25,
        dim=0.02,
    ),
    Marker("CD3e", _T_CELLS, membrane=0.9, cytoplasm=0.1, cap=0.2, level=0.45, spread=0.25, dim=0.02),
    Marker(
        "CD4",
        dict.fromkeys(("CD4 T", "Treg"), 1.0),
        membrane=0.9,
        cap=0.2,
        level=0.42,
        spread=0.25,
        dim=0.02,
        faint={"macrophage": 0.5, "dendritic": 0.3},
        faint_level=0.12,
    ),
    Marker("CD8a", {"CD8 T": 1.0}, membrane=0.9, cap=0.2, level=0.5, spread=0.25, dim=0.02),
    Marker("CD20", {"B": 0.97}, membrane=0.9, cytoplasm=0.1, level=0.5, spread=0.35, dim=0.05),
    Marker("CD68", {"macrophage": 0.95, "dendritic": 0.1}, cytoplasm=0.6, puncta=0.8, level=0.45, ragged=0.5),
    Marker(
        "Pan-CK",
        {"epithelial": 0.98, "basal": 0.97},
        cytoplasm=0.8,
        membrane=0.4,
        nucleus=0.06,
        level=0.5,
        baseline=0.02,
    ),
)


@dataclass(frozen=True)
class SectionConfig:
    """One section and how it is imaged.

    Parameters
    ----------
    shape
        ``(y, x)`` px of the immunofluorescence, at least 64 each.
    mpp
        µm per px of the immunofluorescence.
    immune
        Share of cells that express CD45.
    tissue, segmentation, platform
        As in :class:`~nimbus_sd.simulation.FieldConfig`.
    markers
        Channels beside Hoechst.
    stain
        Of the H&E.
    placement
        Of the H&E: its own pixel size, turn, and registration error.
    """

    shape: tuple[int, int] = (1024, 1024)
    mpp: float = 0.325
    immune: float = 0.2
    tissue: TissueConfig | None = None
    segmentation: SegmentationConfig = field(
        default_factory=lambda: SegmentationConfig(
            nuclei=True, dilate=0.5, wobble=0.15, merged=0.01, split=0.005, missed=0.02
        )
    )
    platform: PlatformConfig = field(
        default_factory=lambda: PlatformConfig("fluorescence16", counts=900, blur=0.4, background=0.005)
    )
    markers: tuple[Marker, ...] = SECTION_PANEL
    stain: Stain = field(default_factory=Stain)
    placement: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 64:
            msg = f"SectionConfig.shape must be (y, x) with at least 64 px a side, got {self.shape!r}"
            raise InputError(msg)
        if not 0.1 <= self.mpp <= 2:
            msg = f"SectionConfig.mpp must lie in [0.1, 2] µm per px, got {self.mpp!r}"
            raise InputError(msg)
        if not 0 <= self.immune <= 0.8:
            msg = f"SectionConfig.immune must lie in [0, 0.8], got {self.immune!r}"
            raise InputError(msg)
        missing = sorted(set(MARKERS) - {marker.name for marker in self.markers})
        if missing:
            msg = f"SectionConfig.markers lacks {', '.join(missing)}; the truth needs {', '.join(MARKERS)}"
            raise InputError(msg)

    @property
    def grown(self) -> TissueConfig:
        """The tissue; by default one of glands, whose aggregates fit `immune`."""
        return self.tissue or TissueConfig(
            epithelium=0.47 - 0.2 * self.immune,
            aggregate=min(0.2 * self.immune, 0.3),
            stroma=0.40,
            lumina=0.22,
            patch=95,
            epithelial_diameter=8.9,
            immune_diameter=6.7,
            stroma_spacing=12.5,
            elongation=2.6,
        )


@dataclass(frozen=True)
class Section:
    """A simulated section.

    Parameters
    ----------
    fluorescence
        ``(c, y, x)`` in the platform's dtype.
    he
        ``(3, y, x)`` uint8 on the slide's own grid.
    labels
        ``(y, x)`` uint32 segmentation on the grid of the immunofluorescence.
    true_labels
        ``(y, x)`` uint32 true cells.
    instance_ids
        ``(n,)`` int64 ids in `labels`.
    expression
        ``(n, c)`` float32 mean of each channel over each label.
    positive
        ``(n, 4)`` float32 for :data:`~nimbus_sd._core.hierarchy.MARKERS`: 1, 0, NaN where a label covers
        several cells.
    cell_types
        ``(n,)`` str, of the true cell that fills most of the label; ``""`` where none does.
    morphology
        Name to ``(n,)`` float32: what was drawn for that cell (NaN where there is none).
    channel_names
        Of `fluorescence`.
    matrix
        3 x 3, from (x, y) px of the H&E to (x, y) px of the immunofluorescence as registered, that is
        without the error.
    error
        ``(n, 2)`` float32 µm (y, x): how far the H&E of each cell lies from where `matrix` says.
    """

    fluorescence: AnyArray
    he: NDArray[np.uint8]
    labels: NDArray[np.uint32]
    true_labels: NDArray[np.uint32]
    instance_ids: NDArray[np.int64]
    expression: FloatArray
    positive: FloatArray
    cell_types: NDArray[np.str_]
    morphology: dict[str, FloatArray]
    channel_names: tuple[str, ...]
    matrix: FloatArray
    error: FloatArray


def _hoechst(
    rng: np.random.Generator, chromatin: Chromatin, parts: Compartments, platform: PlatformConfig
) -> AnyArray:
    """Image the DNA, which lies where haematoxylin will bind: ``(y, x)``."""
    signal = (_HOECHST * chromatin.density).astype(np.float32)
    exposure = expose(rng, chromatin.tissue, platform, signal=Signal(signal, signal), parts=parts)
    return detect(rng, exposure, platform, chromatin.tissue.mpp)


def _fluorescence(
    streams: Sequence[np.random.Generator], chromatin: Chromatin, config: SectionConfig
) -> tuple[AnyArray, FloatArray]:
    """All channels ``(c, y, x)``, and the truth of :data:`MARKERS` per true cell ``(n + 1, 4)``."""
    tissue = chromatin.tissue
    parts = Compartments.of(streams[0], tissue)
    channels = {
        marker.name: image_channel(
            rng, tissue, parts, marker=marker, platform=vary_platform(rng, config.platform)
        )
        for rng, marker in zip(streams[1:], config.markers, strict=True)
    }
    dna = _hoechst(streams[0], chromatin, parts, config.platform)
    image = np.stack([dna, *(pixels for pixels, _ in channels.values())])
    return image, np.stack([channels[name][1] for name in MARKERS], 1)


def simulate_section(seed: int, config: SectionConfig | None = None) -> Section:
    """Simulate one section with immunofluorescence and H&E of the same cells.

    Parameters
    ----------
    seed
        The same seed and configuration give the same arrays.
    config
        What to simulate.

    Examples
    --------
    >>> from nimbus_sd.simulation import SectionConfig, simulate_section
    >>> section = simulate_section(0, SectionConfig(shape=(128, 160)))
    >>> section.he.shape, section.fluorescence.shape
    ((3, 128, 160), (8, 128, 160))
    """
    config = config or SectionConfig()
    grow, cut, settle, look, lay, mark, dye, place, shoot, *shine = np.random.default_rng(seed).spawn(
        10 + len(config.markers)
    )
    tissue, red = open_vessels(cut, grow_tissue(grow, config.shape, config.grown, config.mpp))
    tissue = replace(tissue, types=populate(settle, tissue, config.immune))
    looks, depth = draw_morphology(look, tissue.types), outside(tissue)
    poses = pose_nuclei(lay, tissue, looks, depth=depth)
    chromatin = paint_nuclei(lay, tissue, looks, poses)
    labels = segment(mark, chromatin.tissue, config.segmentation)
    image, truth = _fluorescence(shine, chromatin, config)
    dyes = stain_dyes(dye, chromatin, looks, poses=poses, depth=depth, red=red)
    slide, matrix, error = to_slide(place, dyes, config.placement, config.mpp)
    shares = overlap(labels, chromatin.tissue.cells)
    main = main_cells(shares)
    at = poses.centres[main].astype(int).clip(0, np.array(config.shape) - 1)
    return Section(
        fluorescence=image,
        he=scan(shoot, slide, config.stain, config.placement.mpp or config.mpp),
        labels=labels.astype(np.uint32),
        true_labels=chromatin.tissue.cells.astype(np.uint32),
        instance_ids=np.arange(1, labels.max() + 1, dtype=np.int64),
        expression=integrated_expression(image, labels).astype(np.float32),
        positive=carry_over(shares, truth),
        cell_types=type_names(main, tissue),
        morphology={k: np.where(main > 0, v[main], np.nan) for k, v in looks.table().items()},
        channel_names=("Hoechst", *(marker.name for marker in config.markers)),
        matrix=matrix,
        error=error[at[:, 0], at[:, 1]],
    )
