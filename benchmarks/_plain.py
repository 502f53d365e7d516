"""What the benchmarks share where only NumPy, SciPy and torch are: input, models, a clock, a table."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from nimbus_sd.arrays import interior_mask
from nimbus_sd.models import LoadedModel, ModelCard, UNet, UNetConfig
from nimbus_sd.simulation import simulate_samples


def machine() -> str:
    """One line about where this runs."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores ({torch.get_num_threads()} torch threads), "
        f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, numpy {np.__version__}"
    )


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows with the same keys as aligned columns; floats with three significant digits."""
    print(f"\n{title}", flush=True)
    if not rows:
        return
    head = list(rows[0])
    cells = [head, *([_text(row[key]) for key in head] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    for line in cells:
        first, *rest = (
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  " + "  ".join([first, *rest]), flush=True)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def side_by_side(functions: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Fastest wall time of each function after one warm-up; calls take turns, so drift hits all alike."""
    for function in functions.values():
        function()
    rounds = [{name: seconds(function) for name, function in functions.items()} for _ in range(repeats)]
    return {name: min(r[name] for r in rounds) for name in functions}


def simulated_marker(side: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One marker ``(1, side, side)`` uint16 over simulated tissue at 1 µm per px, and its segmentation."""
    sample = simulate_samples(seed, shape=(side, side), n_channels=1)
    return (sample.images.clip(0, 4) * 1000).astype(np.uint16), sample.labels.astype(np.uint32)


def square_cells(
    shape: tuple[int, int],
    *,
    side: int,
    pitch: int,
    first: int = 1,
    origin: tuple[int, int] = (0, 0),
    columns: int | None = None,
) -> np.ndarray:
    """Labels ``(y, x)`` uint32: squares of `side` px, one every `pitch` px, ids counted from `first`.

    Parameters
    ----------
    shape, origin
        Extent, and position of its first pixel in a larger field.
    columns
        Cells per row of the field; None counts those of `shape`.
    """
    (row, y), (column, x) = (
        np.divmod(np.arange(o, o + n), pitch) for o, n in zip(origin, shape, strict=True)
    )
    ids = (row[:, None] * (columns or column[-1] + 1) + column + first).astype(np.uint32)
    ids *= (y < side)[:, None] & (x < side)
    return ids


def random_unet(width: int, *, depth: int = 5, seed: int = 0) -> LoadedModel:
    """U-Net of the published architecture with random weights that keep activations of order one.

    The last layer is scaled so that the logits of simulated tissue spread by two around
    zero: pixel scores then fill [0, 1] and errors show.
    """
    generator = torch.Generator().manual_seed(seed)
    config = UNetConfig(width=width, depth=depth)
    net = UNet(config)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5, generator=generator)
            nn.init.normal_(module.bias, std=0.05, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.1, generator=generator)
            nn.init.normal_(module.bias, std=0.05, generator=generator)
            nn.init.normal_(module.running_mean, std=0.1, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    net.eval()
    with torch.inference_mode():
        image, labels = simulated_marker(128, seed=1)
        planes = np.stack([np.minimum(image[0] / 1000, 1), interior_mask(labels)])
        logits = net(torch.from_numpy(planes.astype(np.float32))[None])
        gain = 2 / logits.std()
        net.final_conv.weight.mul_(gain)
        net.final_conv.bias.copy_((net.final_conv.bias - logits.mean()) * gain)
    architecture = {"width": width, "depth": depth}
    card = ModelCard(f"random-{width}", architecture=architecture, stride=config.stride, halo=config.halo)
    return LoadedModel(net, card)
