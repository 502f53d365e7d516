"""Laboratories and scanners: how amounts of dye become the pixels of a slide's file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import fft, ndimage

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.stain import HED_FROM_RGB, combine, optical_density
from nimbus_sd.simulation._types import AnyArray, FloatArray

_LUMA = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
_BLOCK = 8
# takes up eosin and is red itself
_HAEMOGLOBIN = (0.0, 0.9, 0.9)


@dataclass(frozen=True)
class Stain:
    """One laboratory's stain and one scanner's light.

    Parameters
    ----------
    haematoxylin, eosin
        Strength, 1 is usual.
    hues
        2 x 3: what haematoxylin and eosin look like as amounts of the pure dyes haematoxylin,
        eosin, DAB; no laboratory's dyes are pure.
    white
        Light in empty areas in red, green, blue, (0, 1].
    blur
        Standard deviation of the optics in µm.
    noise
        Standard deviation of the camera's noise in grey values.
    quality
        Of the JPEG compression, 1-100; 100 is none.
    """

    haematoxylin: float = 1.0
    eosin: float = 1.0
    hues: tuple[tuple[float, float, float], tuple[float, float, float]] = (
        (1.0, 0.06, 0.08),
        (0.02, 1.0, 0.42),
    )
    white: tuple[float, float, float] = (0.955, 0.945, 0.955)
    blur: float = 0.28
    noise: float = 1.6
    quality: float = 85.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("haematoxylin", 0.1, 5),
            ("eosin", 0.1, 5),
            ("blur", 0, 5),
            ("noise", 0, 50),
            ("quality", 1, 100),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                msg = f"Stain.{name} must lie in [{low:g}, {high:g}], got {value!r}"
                raise InputError(msg)
        if len(self.white) != 3 or not all(0.1 <= w <= 1 for w in self.white):
            msg = f"Stain.white must be three numbers in [0.1, 1], got {self.white!r}"
            raise InputError(msg)


def random_stain(rng: np.random.Generator) -> Stain:
    """Draw the laboratory of a patient."""
    usual = Stain()
    hues = np.asarray(usual.hues) + rng.normal(0, [[0, 0.02, 0.05], [0.025, 0, 0.10]])
    return replace(
        usual,
        haematoxylin=float(np.exp(rng.normal(0, 0.14))),
        eosin=float(np.exp(rng.normal(0, 0.20))),
        hues=_pairs(np.maximum(hues, -0.02)),
        white=_triple(np.clip(usual.white + rng.normal(0, 0.012, 3), 0.85, 0.995)),
        blur=float(rng.uniform(0.2, 0.38)),
        noise=float(rng.uniform(0.8, 2.4)),
        quality=float(rng.uniform(72, 92)),
    )


def vary_stain(rng: np.random.Generator, stain: Stain) -> Stain:
    """Vary it a little: another section by the same laboratory."""
    return replace(
        stain,
        haematoxylin=stain.haematoxylin * float(np.exp(rng.normal(0, 0.05))),
        eosin=stain.eosin * float(np.exp(rng.normal(0, 0.07))),
        white=_triple(np.clip(stain.white + rng.normal(0, 0.005, 3), 0.85, 0.995)),
        blur=stain.blur * float(rng.uniform(0.9, 1.15)),
    )


def _triple(values: AnyArray) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _pairs(values: AnyArray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    first, second = values
    return _triple(first), _triple(second)


def scan(rng: np.random.Generator, dyes: FloatArray, stain: Stain, mpp: float) -> AnyArray:
    """Image a stained section in transmitted light (Beer-Lambert).

    Parameters
    ----------
    rng
        Source of randomness.
    dyes
        ``(y, x, 3)`` haematoxylin, eosin, haemoglobin.
    stain
        Laboratory and scanner.
    mpp
        µm per px.

    Returns
    -------
    ``(3, y, x)`` uint8: red, green, blue.
    """
    sigma = stain.blur / mpp
    blurred = ndimage.gaussian_filter(dyes, (sigma, sigma, 0), truncate=3.0) if sigma > 0.2 else dyes
    amount = blurred * np.array([stain.haematoxylin, stain.eosin, stain.eosin], np.float32)
    # a lamp that is not white is a constant amount of dye
    lamp = optical_density(np.asarray(stain.white)) @ HED_FROM_RGB
    rgb = combine(amount @ np.array([*stain.hues, _HAEMOGLOBIN]) + lamp).astype(np.float32)
    if stain.noise:
        rgb += rng.normal(0, stain.noise, rgb.shape[:2]).astype(np.float32)[..., None]
        rgb += rng.normal(0, 0.6 * stain.noise, rgb.shape).astype(np.float32)
    if stain.quality < 100:
        rgb = compress(rgb, stain.quality)
    return np.ascontiguousarray(np.moveaxis(np.clip(np.rint(rgb), 0, 255).astype(np.uint8), -1, 0))


def compress(rgb: AnyArray, quality: float) -> AnyArray:
    """Lose what JPEG loses: ``(y, x, 3)`` to the same, frequencies of 8 x 8 px blocks rounded.

    Parameters
    ----------
    rgb
        0-255.
    quality
        1-100, on JPEG's scale.
    """
    height, width = rgb.shape[:2]
    planes = np.moveaxis((rgb - 128) @ _LUMA.T.astype(np.float32), -1, 0)
    pad = (-height % _BLOCK, -width % _BLOCK)
    planes = np.pad(planes, ((0, 0), (0, pad[0]), (0, pad[1])), mode="edge")
    grid = planes.reshape(3, planes.shape[1] // _BLOCK, _BLOCK, planes.shape[2] // _BLOCK, _BLOCK)
    waves = fft.dctn(grid, axes=(2, 4), norm="ortho")
    step = _steps(quality)[:, None, :, None, :]
    back = fft.idctn(np.rint(waves / step) * step, axes=(2, 4), norm="ortho")
    back = back.reshape(planes.shape)[:, :height, :width]
    return np.moveaxis(back, 0, -1) @ np.linalg.inv(_LUMA).T.astype(np.float32) + 128


def _steps(quality: float) -> FloatArray:
    """Widths of quantisation, ``(3, 8, 8)``: coarser for high frequencies and for colour."""
    scale = max(50 / quality if quality < 50 else 2 - quality / 50, 0.02)
    order = np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK))
    luma = 11 + 5.5 * order
    colour = np.minimum(17 + 14 * order, 99)
    return np.maximum(np.stack([luma, colour, colour]) * scale, 1).astype(np.float32)
