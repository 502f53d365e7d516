"""How far a network sees: the interval of inputs behind each output, step by step."""

from __future__ import annotations

from collections.abc import Sequence

Step = tuple[int, int, int]
"""Output px i reads inputs ``(i * stride - before) .. (i * stride + after)``; a negative
stride -s reads ``i // s`` (upsampling)."""


def conv(kernel: int = 3, stride: int = 1) -> Step:
    """A convolution or pooling padded by half its kernel."""
    before = kernel // 2
    return stride, before, kernel - 1 - before


def up(factor: int = 2) -> Step:
    """Upsampling where every output px reads one input px."""
    return -factor, 0, 0


def halo(steps: Sequence[Step], stride: int) -> int:
    """Context in px that a tile aligned to `stride` sees beyond its edge, rounded up to it.

    Parameters
    ----------
    steps
        The longest path from the output back to the input.
    stride
        Product of all downsampling.

    Examples
    --------
    >>> halo([conv(3)], 1), halo([up(2), conv(3), conv(3, 2)], 2)
    (1, 4)
    """
    reach = 0
    for pixel in range(stride):
        low = high = pixel
        for factor, before, after in steps:
            if factor < 0:
                low, high = low // -factor, high // -factor
            else:
                low, high = low * factor - before, high * factor + after
        reach = max(reach, -low, high - (stride - 1))
    return -(-reach // stride) * stride
