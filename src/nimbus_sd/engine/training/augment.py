"""Augmentation of a batch on its device: geometry alike for every plane, intensity for the marker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nimbus_sd.engine.training.batch import Batch
from nimbus_sd.engine.training.config import AugmentConfig

_AUGMENT = 3


def augment(batch: Batch, config: AugmentConfig, *, seed: int) -> Batch:
    """Flip, turn, warp; blur, redraw, add noise, scale; each tile with a draw of its own.

    Image planes are interpolated bilinearly, mask and labels take the nearest px, and
    beyond the border the tile is mirrored. Nothing is clipped here.

    Parameters
    ----------
    batch
        Tiles; ``batch.step`` and ``batch.part`` decide the draws, together with `seed`.
    config
        What is done, and how often.
    seed
        Of the run; torch's global generator is neither read nor moved.
    """
    key = np.random.SeedSequence((seed, _AUGMENT, batch.step, batch.part)).generate_state(2, np.uint64)
    drawn = _Draws(
        torch.Generator().manual_seed(int(key[0] >> 1)),
        torch.Generator(batch.planes.device).manual_seed(int(key[1] >> 1)),
        len(batch.planes),
        batch.planes.device,
    )
    batch = _turn(batch, config, drawn)
    batch = _warp(batch, config, drawn)
    marker = _intensity(batch.planes[:, :1], config, drawn)
    return replace(batch, planes=torch.cat([marker, batch.planes[:, 1:]], dim=1))


@dataclass(frozen=True)
class _Draws:
    """Random numbers: few ones (parameters) from the host, so that devices agree; fields on the device."""

    host: torch.Generator
    field: torch.Generator
    size: int
    device: torch.device

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """One number per tile, on the host."""
        return low + (high - low) * torch.rand(self.size, generator=self.host)

    def hit(self, probability: float) -> Tensor:
        """Tiles that are chosen."""
        return self.uniform() < probability

    def log_uniform(self, limits: tuple[float, float]) -> Tensor:
        """One number per tile, on the host."""
        return torch.exp(self.uniform(float(np.log(limits[0])), float(np.log(limits[1]))))


def _turn(batch: Batch, config: AugmentConfig, drawn: _Draws) -> Batch:
    """Exact flips and turns by 90°."""
    down, across, turned = drawn.hit(config.flip), drawn.hit(config.flip), drawn.hit(config.rotate)
    square = batch.mask.shape[1] == batch.mask.shape[2]
    quarter = drawn.uniform(1, 4).long()
    turns = torch.where(turned, quarter if square else torch.full_like(quarter, 2), 0)
    if not bool((down | across | (turns > 0)).any()):
        return batch

    def each(x: Tensor) -> Tensor:
        out = []
        for i, plane in enumerate(x):
            dims = [d for d, on in ((-2, bool(down[i])), (-1, bool(across[i]))) if on]
            out.append(torch.rot90(plane.flip(dims) if dims else plane, int(turns[i]), (-2, -1)))
        return torch.stack(out)

    return replace(batch, planes=each(batch.planes), mask=each(batch.mask), labels=each(batch.labels))


def _warp(batch: Batch, config: AugmentConfig, drawn: _Draws) -> Batch:
    """Affine map and elastic displacement in one resampling of the tiles that are hit."""
    affine, elastic = drawn.hit(config.affine), drawn.hit(config.elastic)
    scale = drawn.uniform(*config.scale)
    shear = torch.stack([drawn.uniform(-config.shear, config.shear) for _ in range(2)], dim=1)
    hit = torch.nonzero(affine | elastic)[:, 0]
    if not len(hit):
        return batch
    scale = torch.where(affine, scale, 1.0)[hit]
    shear = torch.where(affine[:, None], shear, 0.0)[hit]
    height, width = batch.mask.shape[1:]
    at = affine_positions(scale, shear, (height, width)).to(drawn.device)
    if bool(elastic.any()):
        noise = 2 * torch.rand((len(hit), 2, height, width), generator=drawn.field, device=drawn.device) - 1
        moved = elastic_displacement(noise, alpha=config.elastic_alpha, sigma=config.elastic_sigma)
        at = at + moved * elastic[hit].to(drawn.device)[:, None, None, None]
    hit = hit.to(drawn.device)
    return replace(
        batch,
        planes=batch.planes.index_copy(0, hit, sample_linear(batch.planes[hit], at)),
        mask=batch.mask.index_copy(0, hit, sample_nearest(batch.mask[hit], at)),
        labels=batch.labels.index_copy(0, hit, sample_nearest(batch.labels[hit], at)),
    )


def affine_positions(scale: Tensor, shear: Tensor, shape: tuple[int, int]) -> Tensor:
    """Where each output px looks in the input.

    Parameters
    ----------
    scale
        ``(b,)``, above 1 enlarges.
    shear
        ``(b, 2)`` degrees along (y, x).
    shape
        (y, x) px; the centre stays where it is.

    Returns
    -------
    ``(b, 2, y, x)`` float32 (y, x) positions in px.
    """
    tan = torch.tan(torch.deg2rad(shear))
    one = torch.ones_like(scale)
    forward = torch.stack([one, tan[:, 0], tan[:, 1], one], dim=1).reshape(-1, 2, 2) * scale[:, None, None]
    back = torch.linalg.inv(forward)
    centre = torch.tensor([(n - 1) / 2 for n in shape])
    out = torch.stack(
        torch.meshgrid(*(torch.arange(n) - c for n, c in zip(shape, centre, strict=True)), indexing="ij")
    )
    return torch.einsum("bij,jyx->biyx", back, out) + centre[:, None, None]


def elastic_displacement(noise: Tensor, *, alpha: float, sigma: float) -> Tensor:
    """Displacement in px: noise in [-1, 1], ``(b, 2, y, x)``, smoothed with `sigma` px, times `alpha`."""
    flat = noise.flatten(0, 1)[:, None]
    smooth = gaussian_blur(flat, torch.full((len(flat),), sigma), radius=round(4 * sigma))
    return alpha * smooth.reshape(noise.shape)


def gaussian_blur(x: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Separable Gaussian blur, mirrored at the border.

    Parameters
    ----------
    x
        ``(b, 1, y, x)``.
    sigma
        ``(b,)`` px.
    radius
        px where the kernel is cut; limited by the tile.
    """
    radius = min(radius, *(n - 1 for n in x.shape[-2:]))
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    sigma = sigma.to(x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(x.dtype)
    padded = F.pad(x, (radius, radius, radius, radius), mode="reflect").transpose(0, 1)
    along_y = F.conv2d(padded, kernel[:, None, :, None], groups=len(x))
    return F.conv2d(along_y, kernel[:, None, None, :], groups=len(x)).transpose(0, 1)


def sample_linear(x: Tensor, at: Tensor) -> Tensor:
    """Bilinear values of ``(b, c, y, x)`` at positions ``(b, 2, y, x)`` in px; mirrored outside."""
    height, width = x.shape[-2:]
    grid = torch.stack([2 * at[:, 1] / max(width - 1, 1) - 1, 2 * at[:, 0] / max(height - 1, 1) - 1], dim=-1)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="reflection", align_corners=True)


def sample_nearest(x: Tensor, at: Tensor) -> Tensor:
    """Nearest values of ``(b, y, x)``, any dtype, at positions ``(b, 2, y, x)`` in px; mirrored outside."""
    y, x_at = (_mirror(torch.round(at[:, k]).long(), n) for k, n in enumerate(x.shape[1:]))
    which = torch.arange(len(x), device=x.device)[:, None, None]
    return x[which, y, x_at]


def _mirror(index: Tensor, n: int) -> Tensor:
    """Indices mirrored about the first and the last of `n` px."""
    if n == 1:
        return torch.zeros_like(index)
    folded = torch.remainder(index, 2 * (n - 1))
    return torch.where(folded < n, folded, 2 * (n - 1) - folded)


def _intensity(x: Tensor, config: AugmentConfig, drawn: _Draws) -> Tensor:
    """Blur, Poisson counts, noise, contrast, gain: ``(b, 1, y, x)``."""

    def spread(values: Tensor) -> Tensor:
        return values.to(drawn.device)[:, None, None, None]

    def where(probability: float, change: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
        hit = torch.nonzero(drawn.hit(probability))[:, 0]
        if not len(hit):
            return x
        at = hit.to(drawn.device)
        return x.index_copy(0, at, change(x[at], values[hit]))

    radius = int(np.ceil(3 * config.blur_sd[1]))
    sd = drawn.uniform(*config.blur_sd)
    x = where(config.blur, lambda tile, v: gaussian_blur(tile, v, radius=radius), sd)
    counts = drawn.log_uniform(config.counts)
    x = where(config.thinning, lambda tile, v: thin(tile, spread(v), drawn.field), counts)
    sd = drawn.uniform(*config.noise_sd)
    x = where(config.noise, lambda tile, v: tile + spread(v) * _normal(tile, drawn), sd)
    factor = drawn.uniform(*config.contrast_factor)
    x = where(config.contrast, lambda tile, v: tile * spread(v), factor)
    factor = drawn.log_uniform(config.gain_factor)
    return where(config.gain, lambda tile, v: tile * spread(v), factor)


def _normal(x: Tensor, drawn: _Draws) -> Tensor:
    return torch.randn(x.shape, generator=drawn.field, device=x.device, dtype=x.dtype)


def thin(x: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Redraw as Poisson counts, `counts` per unit of intensity."""
    return torch.poisson(x.clamp_min(0) * counts, generator=generator) / counts
