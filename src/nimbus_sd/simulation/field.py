"""Whole simulated fields with known truth, in the pixel format of a platform."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nimbus_sd._core.errors import InputError
from nimbus_sd.simulation._types import AnyArray, FloatArray
from nimbus_sd.simulation.config import CELL_TYPES, Marker, PlatformConfig, SegmentationConfig, TissueConfig
from nimbus_sd.simulation.markers import Compartments, express, render
from nimbus_sd.simulation.panel import PANEL
from nimbus_sd.simulation.platforms import detect, detectable, expose, truth_of
from nimbus_sd.simulation.segmentation import carry_over, overlap, segment
from nimbus_sd.simulation.tissue import Tissue, grow_tissue


@dataclass(frozen=True)
class FieldConfig:
    """One field of view.

    Parameters
    ----------
    shape
        ``(y, x)`` in px, at least 32 each.
    mpp
        µm per px.
    tissue, segmentation, platform
        What there is, how it is segmented, what it is imaged with.
    markers
        Channels.

    Examples
    --------
    >>> from nimbus_sd.simulation import FieldConfig, panel, simulate_field
    >>> config = FieldConfig(shape=(64, 64), mpp=1.0, markers=panel(("CD3", "PanCK")))
    >>> simulate_field(0, config).image.shape
    (2, 64, 64)
    """

    shape: tuple[int, int] = (1024, 1024)
    mpp: float = 0.5
    tissue: TissueConfig = field(default_factory=TissueConfig)
    segmentation: SegmentationConfig = field(
        default_factory=lambda: SegmentationConfig(
            nuclei=True, dilate=1.0, wobble=0.2, merged=0.02, split=0.01, missed=0.03
        )
    )
    platform: PlatformConfig = field(default_factory=PlatformConfig)
    markers: tuple[Marker, ...] = PANEL

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 32:
            msg = f"FieldConfig.shape must be (y, x) with at least 32 px a side, got {self.shape!r}"
            raise InputError(msg)
        if not 0.1 <= self.mpp <= 4:
            msg = f"FieldConfig.mpp must lie in [0.1, 4] µm per px, got {self.mpp!r}"
            raise InputError(msg)
        names = [marker.name for marker in self.markers]
        if not names or len(set(names)) != len(names):
            msg = f"FieldConfig.markers must be one or more with distinct names, got {names}"
            raise InputError(msg)


@dataclass(frozen=True)
class Field:
    """A simulated field and its truth.

    Parameters
    ----------
    image
        ``(c, y, x)`` in the platform's dtype.
    labels
        ``(y, x)`` uint32, the imperfect segmentation to be given to a model.
    true_labels
        ``(y, x)`` uint32, the true cells.
    instance_ids
        ``(n,)`` int64, ids in `labels`, ascending.
    positive
        ``(n, c)`` float32: 1, 0, NaN where undefined.
    cell_types
        ``(n,)`` str, type of the true cell that fills most of the label, ``""`` where none does.
    channel_names
        Names of the channels.
    mpp
        µm per px.
    """

    image: AnyArray
    labels: NDArray[np.uint32]
    true_labels: NDArray[np.uint32]
    instance_ids: NDArray[np.int64]
    positive: FloatArray
    cell_types: NDArray[np.str_]
    channel_names: tuple[str, ...]
    mpp: float


def image_channel(
    rng: np.random.Generator, tissue: Tissue, parts: Compartments, *, marker: Marker, platform: PlatformConfig
) -> tuple[AnyArray, FloatArray]:
    """One channel: pixels (y, x) and truth per true cell (n + 1,)."""
    expression = express(rng, tissue, marker)
    signal = render(rng, tissue, marker, expression=expression, parts=parts)
    exposure = expose(rng, tissue, platform, signal=signal, parts=parts)
    seen = detectable(tissue, platform, expression=expression, signal=signal, exposure=exposure)
    return detect(rng, exposure, platform, tissue.mpp), truth_of(expression, seen)


def simulate_field(seed: int, config: FieldConfig | None = None) -> Field:
    """Simulate one field of view with known truth.

    Parameters
    ----------
    seed
        The same seed and configuration give the same arrays.
    config
        What to simulate.

    Returns
    -------
    Image, labels and truth.
    """
    config = config or FieldConfig()
    streams = np.random.default_rng(seed).spawn(3 + len(config.markers))
    tissue = grow_tissue(streams[0], config.shape, config.tissue, config.mpp)
    labels = segment(streams[1], tissue, config.segmentation)
    parts = Compartments.of(streams[2], tissue)
    channels = [
        image_channel(rng, tissue, parts, marker=marker, platform=vary_platform(rng, config.platform))
        for rng, marker in zip(streams[3:], config.markers, strict=True)
    ]
    shares = overlap(labels, tissue.cells)
    truth = carry_over(shares, np.stack([t for _, t in channels], 1))
    return Field(
        image=np.stack([pixels for pixels, _ in channels]),
        labels=labels.astype(np.uint32),
        true_labels=tissue.cells.astype(np.uint32),
        instance_ids=np.arange(1, labels.max() + 1, dtype=np.int64),
        positive=truth,
        cell_types=type_names(main_cells(shares), tissue),
        channel_names=tuple(marker.name for marker in config.markers),
        mpp=config.mpp,
    )


def vary_platform(rng: np.random.Generator, platform: PlatformConfig) -> PlatformConfig:
    """Antibodies differ: yield and background of one channel around the platform's."""
    return replace(
        platform,
        counts=min(platform.counts * float(rng.lognormal(0, 0.4)), 1e6),
        background=platform.background * float(rng.lognormal(0, 0.6)),
    )


def main_cells(shares: AnyArray) -> NDArray[np.int64]:
    """Index of the true cell with the largest share of each label, 0 where none has any: ``(m,)``."""
    if shares.shape[0] < 2 or shares.shape[1] < 2:
        return np.zeros(max(shares.shape[0] - 1, 0), np.int64)
    inner = shares[1:, 1:]
    best = np.asarray(inner.argmax(axis=1)).ravel()
    filled = np.asarray(inner.max(axis=1).todense()).ravel() > 0
    return np.where(filled, best + 1, 0).astype(np.int64)


def type_names(cells: NDArray[np.int64], tissue: Tissue) -> NDArray[np.str_]:
    """Type of each true cell by index, ``""`` for index 0."""
    names = np.asarray(CELL_TYPES, dtype="<U16")[tissue.types[cells]]
    return np.where(cells > 0, names, "").astype("<U16")
