"""Changed H&E patches, on their device: turned, flipped, stained more or less, lit more or less, blurred."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nimbus_sd._core.stain import HED_FROM_RGB, RGB_FROM_HED
from nimbus_sd.engine.embedding.augment import flipped
from nimbus_sd.engine.training.config_checks import ranges, within

_DRAWS = 17
_FLOOR = 1e-6  # of the light, as in nimbus_sd._core.stain
_UNIT = -math.log(_FLOOR)


@dataclass(frozen=True)
class StainConfig:
    """How H&E patches are changed; every patch has draws of its own.

    Parameters
    ----------
    flip, turn
        Probability of a flip along each axis; of swapping the axes. With both one half all
        eight symmetries of the square are equally likely.
    gain
        Factor of the amount of each stain, log-uniform.
    shift
        Added to the amount of each stain, uniform, in units of
        ``nimbus_sd._core.stain.separate`` (a dark nucleus has some 0.1).
    light
        Factor of the light that comes through, log-uniform.
    blur, blur_sd
        Probability; limits of the standard deviation of Gaussian blur in px.

    References
    ----------
    Tellez et al. (2018), *Whole-slide mitosis detection in H&E breast histology using PHH3 as a
    reference to train distilled stain-invariant convolutional networks*: factors and shifts of
    haematoxylin, eosin and DAB in optical density.
    """

    flip: float = 0.5
    turn: float = 0.5
    gain: tuple[float, float] = (0.8, 1.25)
    shift: tuple[float, float] = (-0.005, 0.005)
    light: tuple[float, float] = (0.95, 1.05)
    blur: float = 0.0
    blur_sd: tuple[float, float] = (0.3, 1.0)

    def __post_init__(self) -> None:
        within(self, 0, 1, "flip", "turn", "blur")
        ranges(self, 1e-3, "gain", "light", "blur_sd")
        ranges(self, -1, "shift")

    @classmethod
    def off(cls) -> StainConfig:
        """Nothing is changed."""
        return cls(flip=0, turn=0, gain=(1, 1), shift=(0, 0), light=(1, 1))

    @property
    def colours(self) -> bool:
        """Whether any colour is changed."""
        return (self.gain, self.shift, self.light) != ((1, 1), (0, 0), (1, 1))


@dataclass(frozen=True)
class StainDraws:
    """What happens to each patch of a batch.

    Attributes
    ----------
    symmetry
        ``(b, 3)`` bool: swap the axes, then flip along y, along x.
    gain, shift
        ``(b, 3)`` of haematoxylin, eosin, DAB.
    light
        ``(b,)`` factor.
    blur_sd
        ``(b,)`` px; 0 where nothing is blurred.
    """

    symmetry: Tensor
    gain: Tensor
    shift: Tensor
    light: Tensor
    blur_sd: Tensor

    def __getitem__(self, which: slice) -> StainDraws:
        """Those of some of the patches."""
        return StainDraws(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def draw(config: StainConfig, n: int, *, seed: int, step: int) -> StainDraws:
    """Parameters for the `n` patches of a step, on the CPU so that devices agree.

    Parameters
    ----------
    config
        Ranges.
    n
        Patches of the whole step, whatever share of them a process has.
    seed, step
        Decide the draws; torch's global generator is neither read nor moved.
    """
    key = np.random.SeedSequence((seed, _DRAWS, step)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(key[0] >> 1))

    def uniform(limits: tuple[float, float], *size: int) -> Tensor:
        return limits[0] + (limits[1] - limits[0]) * torch.rand(size, generator=generator)

    def log_uniform(limits: tuple[float, float], *size: int) -> Tensor:
        return torch.exp(uniform((math.log(limits[0]), math.log(limits[1])), *size))

    chances = torch.tensor([config.turn, config.flip, config.flip])
    symmetry = torch.rand((n, 3), generator=generator) < chances
    gain, shift = log_uniform(config.gain, n, 3), uniform(config.shift, n, 3)
    light, sd = log_uniform(config.light, n), uniform(config.blur_sd, n)
    blurred = torch.rand(n, generator=generator) < config.blur
    return StainDraws(symmetry, gain, shift, light, torch.where(blurred, sd, 0))


@torch.no_grad()
def augment(patches: Tensor, config: StainConfig, draws: StainDraws) -> Tensor:
    """Change patches as the draws say.

    Parameters
    ----------
    patches
        ``(b, 3, S, S)`` float in [0, 1], any device.
    config
        Tells what is off.
    draws
        One per patch.

    Returns
    -------
    The same shape and range.
    """
    if config.flip or config.turn:
        patches = moved(patches, draws.symmetry.to(patches.device))
    if config.colours:
        patches = restained(patches, draws)
    if config.blur:
        patches = blurred(patches, draws.blur_sd)
    return patches


def moved(patches: Tensor, symmetry: Tensor) -> Tensor:
    """Swap axes and flip where ``(b, 3)`` says so."""
    swapped = torch.where(symmetry[:, 0, None, None, None], patches.transpose(2, 3), patches)
    return flipped(swapped, symmetry[:, 1:])


def restained(patches: Tensor, draws: StainDraws) -> Tensor:
    """Change the amounts of the three stains, and the light.

    Light falls off exponentially with the amount of dye, so that both changes are one linear
    map of the optical density of red, green and blue.
    """
    from_rgb, to_rgb = torch.from_numpy(HED_FROM_RGB), torch.from_numpy(RGB_FROM_HED)
    each = draws.gain.double()[:, :, None] * to_rgb  # (b, stain, rgb)
    matrix = (from_rgb @ each).mT  # (b, rgb out, rgb in)
    offset = _UNIT * (draws.shift.double() @ to_rgb) - torch.log(draws.light.double())[:, None]
    device, kind = patches.device, patches.dtype
    density = patches.clamp(min=_FLOOR).log().flatten(2)  # minus the density
    log_light = torch.baddbmm(
        -offset[:, :, None].to(device, kind), matrix.to(device, kind), density.contiguous()
    )
    return log_light.exp_().clamp_(0, 1).unflatten(2, patches.shape[2:])


def blurred(patches: Tensor, sd: Tensor) -> Tensor:
    """Blur each patch with its own standard deviation (px), mirrored at its border."""
    at = torch.arange(-3, 4, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (at / sd.double().clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(patches.device, patches.dtype)
    b, c, y, x = patches.shape
    each = kernel.repeat_interleave(c, 0)
    flat = F.pad(patches.reshape(1, b * c, y, x), (3, 3, 3, 3), mode="reflect")
    flat = F.conv2d(flat, each[:, None, :, None], groups=b * c)
    return F.conv2d(flat, each[:, None, None, :], groups=b * c).reshape(b, c, y, x)
