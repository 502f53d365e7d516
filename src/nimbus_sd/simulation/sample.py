"""Training samples: one tissue, several random markers, at the pixel size of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nimbus_sd.simulation._types import AnyArray, BoolArray, FloatArray, IntArray
from nimbus_sd.simulation.config import Marker, PlatformConfig, SegmentationConfig, TissueConfig
from nimbus_sd.simulation.markers import Compartments, Expression, express, render
from nimbus_sd.simulation.panel import random_marker
from nimbus_sd.simulation.platforms import detect, detectable, expose, truth_of
from nimbus_sd.simulation.segmentation import carry_over, halved_interior, interior, overlap, segment
from nimbus_sd.simulation.tissue import Tissue, grow_tissue

MODEL_MPP = 1.0


@dataclass(frozen=True)
class Samples:
    """Channels over one simulated tissue, ready to train on.

    Parameters
    ----------
    images
        ``(c, y, x)`` float32; 1 is about the brightest positive signal.
    labels
        ``(y, x)`` int32, the imperfect segmentation.
    interior
        ``(y, x)`` bool, the mask plane of the network.
    positive
        ``(n, c)`` float32 for labels 1..n: 1, 0 or NaN.
    """

    images: FloatArray
    labels: IntArray
    interior: BoolArray
    positive: FloatArray


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def random_tissue(rng: np.random.Generator) -> TissueConfig:
    """Draw shares and sizes of tissue."""
    shares = rng.dirichlet([0.8, 0.6, 0.8, 0.8]) if rng.random() < 0.85 else np.eye(4)[rng.integers(3)]
    return TissueConfig(
        epithelium=float(shares[0]),
        aggregate=float(shares[1]),
        stroma=float(shares[2]),
        lumina=float(rng.uniform(0, 0.5)),
        patch=float(rng.uniform(40, 160)),
        epithelial_diameter=float(rng.uniform(8.5, 14)),
        immune_diameter=float(rng.uniform(6, 10)),
        stroma_spacing=float(rng.uniform(9, 22)),
        elongation=float(rng.uniform(1.2, 3.5)),
        nucleus=float(rng.uniform(0.55, 0.85)),
    )


def random_segmentation(rng: np.random.Generator) -> SegmentationConfig:
    """Draw the errors of a segmentation."""
    nuclei = bool(rng.random() < 0.6)
    return SegmentationConfig(
        nuclei=nuclei,
        dilate=float(rng.uniform(0.5, 2.2)) if nuclei else float(rng.choice([0, rng.uniform(0, 1.5)])),
        erode=0.0 if nuclei else float(rng.choice([0, rng.uniform(0, 1.2)])),
        shift=float(rng.choice([0, rng.uniform(0, 1.6)])),
        wobble=float(rng.uniform(0, 0.7)),
        merged=float(rng.uniform(0, 0.08)),
        split=float(rng.uniform(0, 0.05)),
        missed=float(rng.uniform(0, 0.3)),
    )


def random_platform(rng: np.random.Generator) -> PlatformConfig:
    """Draw an instrument and how well it was run."""
    kind = str(
        rng.choice(["ions_denoised", "ions", "fluorescence8", "fluorescence16"], p=[0.45, 0.2, 0.1, 0.25])
    )
    ions = kind.startswith("ions")
    denoised = kind == "ions_denoised"
    dirt = 0.004 if denoised else 0.02 if ions else 0.12
    return PlatformConfig(
        kind=kind,
        counts=_log_uniform(rng, 1.5, 120) if ions else _log_uniform(rng, 60, 3000),
        blur=float(rng.uniform(0.3, 0.7)) if ions else float(rng.uniform(0.4, 1.3)),
        background=_log_uniform(rng, dirt / 12, dirt * 4),
        bleed=_log_uniform(rng, 0.003, 0.25) if rng.random() < (0.1 if ions else 0.25) else 0.0,
        gradient=0.0 if ions else float(rng.uniform(0, 0.25)),
        hot=_log_uniform(rng, 0.01, 3) if rng.random() < 0.3 else 0.0,
        debris=float(rng.uniform(0, 12)) if rng.random() < 0.3 else 0.0,
        denoise=_log_uniform(rng, 0.25, 1.6),
    )


def _brightest(pixels: FloatArray, tissue: Tissue, expression: Expression, platform: PlatformConfig) -> float:
    """Value of bright positive pixels, or what a bright marker would give if nothing is positive."""
    nominal = 0.8 * (platform.counts if platform.kind.startswith("ions") else 0.45)
    seen = pixels[expression.positive[tissue.cells]]
    return max(float(np.quantile(seen, 0.995)), 0.1 * nominal) if len(seen) > 200 else nominal


def _sample_channel(
    rng: np.random.Generator,
    tissue: Tissue,
    parts: Compartments,
    *,
    marker: Marker,
    platform: PlatformConfig,
) -> tuple[FloatArray, FloatArray, Expression]:
    """One marker on one platform: image (y, x) in the platform's units, truth and levels (n + 1,)."""
    expression = express(rng, tissue, marker)
    signal = render(rng, tissue, marker, expression=expression, parts=parts)
    exposure = expose(rng, tissue, platform, signal=signal, parts=parts)
    seen = detectable(tissue, platform, expression=expression, signal=signal, exposure=exposure)
    pixels = detect(rng, exposure, platform, tissue.mpp).astype(np.float32)
    if platform.kind == "fluorescence8":
        pixels /= 255
    elif platform.kind == "fluorescence16":
        pixels /= 65535
    return pixels, truth_of(expression, seen), expression


def _scaled_channel(
    rng: np.random.Generator, tissue: Tissue, parts: Compartments
) -> tuple[FloatArray, FloatArray]:
    """One random marker on one random platform, divided by its brightest signal."""
    marker, platform = random_marker(rng), random_platform(rng)
    pixels, truth, expression = _sample_channel(rng, tissue, parts, marker=marker, platform=platform)
    return pixels / _brightest(pixels, tissue, expression, platform), truth


def _field(
    streams: Sequence[np.random.Generator],
    shape: tuple[int, int],
    tissue_config: TissueConfig,
    segmentation: SegmentationConfig,
    channel: Callable[[int, np.random.Generator, Tissue, Compartments], tuple[FloatArray, FloatArray]],
) -> Samples:
    """Tissue, labels, mask, and the channels that `channel` makes; the first streams are the tissue's."""
    tissue = grow_tissue(streams[0], shape, tissue_config, MODEL_MPP)
    labels = segment(streams[1], tissue, segmentation)
    parts = Compartments.of(streams[2], tissue)
    channels = [channel(k, stream, tissue, parts) for k, stream in enumerate(streams[3:])]
    truth: AnyArray = np.stack([t for _, t in channels], 1)
    mask = halved_interior(streams[2], labels) if streams[2].random() < 0.75 else interior(labels)
    return Samples(
        images=np.stack([pixels for pixels, _ in channels]),
        labels=labels,
        interior=mask,
        positive=carry_over(overlap(labels, tissue.cells), truth),
    )


def sample_field(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    tissue: TissueConfig,
    segmentation: SegmentationConfig,
    channels: Sequence[tuple[Marker, PlatformConfig]],
) -> Samples:
    """One field of given markers on given platforms at 1 µm per px, in the platforms' units."""

    def channel(
        k: int, stream: np.random.Generator, grown: Tissue, parts: Compartments
    ) -> tuple[FloatArray, FloatArray]:
        marker, platform = channels[k]
        return _sample_channel(stream, grown, parts, marker=marker, platform=platform)[:2]

    return _field(rng.spawn(3 + len(channels)), shape, tissue, segmentation, channel)


def simulate_samples(seed: int, *, shape: tuple[int, int] = (512, 512), n_channels: int = 6) -> Samples:
    """Simulate random channels over one random tissue at 1 µm per px.

    Parameters
    ----------
    seed
        The same seed gives the same arrays.
    shape
        ``(y, x)`` in px.
    n_channels
        Markers, each on a platform of its own.
    """
    streams = np.random.default_rng(seed).spawn(3 + n_channels)
    tissue, segmentation = random_tissue(streams[0]), random_segmentation(streams[1])
    return _field(
        streams, shape, tissue, segmentation, lambda _, stream, *grown: _scaled_channel(stream, *grown)
    )
