"""Views of a batch of patches, on its device: turned, scaled, flipped, cropped, brightened, made noisy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nimbus_sd.engine.embedding.train_config import ViewConfig

_VIEWS = 11


@dataclass(frozen=True)
class ViewDraws:
    """What happens to each patch in one view.

    Parameters
    ----------
    gain
        ``(b, 1)`` or ``(b, c)`` factor of the intensity.
    noise_sd
        ``(b,)`` standard deviation of the noise.
    angle, scale
        ``(b,)`` radians counterclockwise; magnification. None where px stay on the grid.
    flip
        ``(b, 2)`` bool: along y, along x.
    """

    gain: Tensor
    noise_sd: Tensor
    angle: Tensor | None
    scale: Tensor | None
    flip: Tensor


@torch.no_grad()
def views(
    patches: Tensor, config: ViewConfig, crops: tuple[int, ...], *, seed: int, step: int, part: int = 0
) -> list[Tensor]:
    """Draw one view of every patch per crop.

    Parameters
    ----------
    patches
        ``(b, c, S, S)`` normalised; any device.
    config
        Ranges of the augmentations.
    crops
        Side of each view in px.
    seed, step, part
        Decide the draws (`part`: the process); torch's global generator is neither read nor moved.

    Returns
    -------
    Per crop ``(b, c, k, k)``. Only the crop's own px are sampled, about the middle that
    a crop of the untouched patch has; where they lie beyond the patch it is mirrored.
    Nothing is clipped: bright px may exceed 1, noise may fall below 0.
    """
    key = np.random.SeedSequence((seed, _VIEWS, step, part)).generate_state(2, np.uint64)
    # few numbers (parameters) come from the host, so that devices agree
    host = torch.Generator().manual_seed(int(key[0] >> 1))
    field = torch.Generator(patches.device).manual_seed(int(key[1] >> 1))
    shape = patches.shape[0], patches.shape[1]
    return [make_view(patches, k, draw(config, shape, host), generator=field) for k in crops]


def draw(config: ViewConfig, shape: tuple[int, int], generator: torch.Generator) -> ViewDraws:
    """Parameters of one view for ``(b, c)`` patches."""
    b, c = shape

    def uniform(limits: tuple[float, float], *size: int) -> Tensor:
        low, high = limits
        return low + (high - low) * torch.rand(size, generator=generator)

    low, high = config.intensity
    gain = torch.exp(uniform((math.log(low), math.log(high)), b, c if config.per_marker else 1))
    noise, angle = uniform(config.noise_sd, b), torch.deg2rad(uniform(config.rotation, b))
    scale, flip = uniform(config.scale, b), torch.rand((b, 2), generator=generator) < config.flip
    if not config.turns:
        return ViewDraws(gain, noise, None, None, flip)
    return ViewDraws(gain, noise, angle, scale, flip)


def make_view(patches: Tensor, crop: int, draws: ViewDraws, *, generator: torch.Generator) -> Tensor:
    """Centre crop ``(b, c, crop, crop)`` of each patch as the draws say."""
    device = patches.device
    if draws.angle is None or draws.scale is None:
        out = flipped(centre(patches, crop), draws.flip.to(device))
    else:
        at = positions(draws.angle, draws.scale, draws.flip, size=patches.shape[-1], crop=crop)
        out = sample(patches, at.to(device))
    out = out * draws.gain.to(device)[:, :, None, None]
    if bool((draws.noise_sd > 0).any()):
        noise = torch.randn(out.shape, generator=generator, device=device, dtype=out.dtype)
        out = out + draws.noise_sd.to(device)[:, None, None, None] * noise
    return out


def centre(patches: Tensor, crop: int) -> Tensor:
    """The middle ``(..., crop, crop)`` of ``(..., S, S)``; the centre px S // 2 comes to crop // 2."""
    first = patches.shape[-1] // 2 - crop // 2
    return patches[..., first : first + crop, first : first + crop]


def flipped(x: Tensor, flip: Tensor) -> Tensor:
    """``(b, c, y, x)`` with axes turned round where ``(b, 2)`` says so."""
    for axis in (0, 1):
        x = torch.where(flip[:, axis, None, None, None], x.flip(axis + 2), x)
    return x


def positions(angle: Tensor, scale: Tensor, flip: Tensor, *, size: int, crop: int) -> Tensor:
    """Where each px of a crop looks in its patch.

    Parameters
    ----------
    angle, scale, flip
        See :class:`ViewDraws`; first scaled and turned, then flipped.
    size, crop
        Sides of patch and crop in px.

    Returns
    -------
    ``(b, crop, crop, 2)`` float32 (y, x) positions in px; the crop's middle stays where it is.
    """
    offset = torch.arange(crop) - (crop - 1) / 2
    middle = size // 2 - crop // 2 + (crop - 1) / 2
    sign = 1.0 - 2.0 * flip
    y = sign[:, 0, None, None] * offset[:, None]
    x = sign[:, 1, None, None] * offset
    cos, sin = ((f(angle) / scale)[:, None, None] for f in (torch.cos, torch.sin))
    return torch.stack([cos * y + sin * x, cos * x - sin * y], dim=-1) + middle


def sample(patches: Tensor, at: Tensor) -> Tensor:
    """Bilinear values of ``(b, c, S, S)`` at ``(b, k, k, 2)`` (y, x) px; mirrored outside, border px once."""
    grid = 2 * at.flip(-1) / max(patches.shape[-1] - 1, 1) - 1
    return F.grid_sample(
        patches, grid.to(patches.dtype), mode="bilinear", padding_mode="reflection", align_corners=True
    )
