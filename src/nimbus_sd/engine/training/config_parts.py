"""How tiles are changed, and which cells the noise-robust stage learns from."""

from __future__ import annotations

from dataclasses import dataclass

from nimbus_sd.engine.training.config_checks import ranges, within


@dataclass(frozen=True)
class AugmentConfig:
    """How tiles are changed; the default is the list of the paper.

    Parameters
    ----------
    flip, rotate
        Probability of each of the two flips, and of a turn by 90°, 180° or 270°.
    affine, scale, shear
        Probability; limits of the scale; largest shear in degrees along each axis.
    elastic, elastic_alpha, elastic_sigma
        Probability; displacement in px that smoothed noise in [-1, 1] is multiplied
        with; standard deviation of the smoothing in px.
    noise, noise_sd
        Probability; limits of the standard deviation of Gaussian noise.
    blur, blur_sd
        Probability; limits of the standard deviation of Gaussian blur in px.
    contrast, contrast_factor
        Probability; limits of the factor on intensity.
    thinning, counts
        Probability that a tile is redrawn as Poisson counts; limits of the
        log-uniform counts per unit of intensity.
    gain, gain_factor
        Probability and limits of a log-uniform factor on intensity.
    """

    flip: float = 0.5
    rotate: float = 0.5
    affine: float = 0.25
    scale: tuple[float, float] = (0.8, 1.2)
    shear: float = 10.0
    elastic: float = 0.25
    elastic_alpha: float = 10.0
    elastic_sigma: float = 4.0
    noise: float = 0.25
    noise_sd: tuple[float, float] = (0.001, 0.015)
    blur: float = 0.25
    blur_sd: tuple[float, float] = (0.1, 1.0)
    contrast: float = 0.25
    contrast_factor: tuple[float, float] = (0.8, 1.2)
    thinning: float = 0.0
    counts: tuple[float, float] = (3.0, 200.0)
    gain: float = 0.0
    gain_factor: tuple[float, float] = (0.06, 1.5)

    def __post_init__(self) -> None:
        kinds = ("flip", "rotate", "affine", "elastic", "noise", "blur", "contrast", "thinning", "gain")
        within(self, 0, 1, *kinds)
        within(self, 0, 45, "shear")
        within(self, 0, 1000, "elastic_alpha")
        within(self, 0.1, 100, "elastic_sigma")
        ranges(self, 0, "noise_sd")
        ranges(self, 0.01, "scale", "blur_sd", "contrast_factor", "counts", "gain_factor")

    @classmethod
    def off(cls) -> AugmentConfig:
        """Nothing is changed."""
        return cls(flip=0, rotate=0, affine=0, elastic=0, noise=0, blur=0, contrast=0)


@dataclass(frozen=True)
class SelectionConfig:
    """Which cells the noise-robust stage learns from.

    Parameters
    ----------
    ema
        Rate at which a group's running quantile follows the batches. It must follow faster
        than the network changes: else the class whose loss rises is left out, rises
        further, and is lost. The paper's rate suits its slow learning on a network that is
        trained already; short runs need a higher one (1: the quantile of each batch).
    quantile_first, quantile_last, quantile_steps
        The quantile rises from the first to the last over this many steps (the paper
        ends at 0.85, its published configuration at 0.9).
    confidence
        Cells whose label the score agrees with beyond this (above it if positive,
        below 1 minus it if negative) are kept whatever their loss.
    """

    ema: float = 0.01
    quantile_first: float = 0.5
    quantile_last: float = 0.85
    quantile_steps: int = 100_000
    confidence: float = 0.9

    def __post_init__(self) -> None:
        within(self, 0, 1, "ema", "quantile_first", "quantile_last")
        within(self, 0.5, 1, "confidence")
        within(self, 1, 1e9, "quantile_steps")

    def quantile(self, step: int) -> float:
        """Quantile at a step of the stage."""
        done = min(max(step, 0) / self.quantile_steps, 1.0)
        return self.quantile_first + (self.quantile_last - self.quantile_first) * done
