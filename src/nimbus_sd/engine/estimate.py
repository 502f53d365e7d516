"""What a run will cost, before it starts: counted from metadata, timed on a small part of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from nimbus_sd.arrays import TilePlan
from nimbus_sd.engine.calibrate import calibrate
from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.flop import forward_flop
from nimbus_sd.engine.groups import channel_groups
from nimbus_sd.engine.predict import Predictor
from nimbus_sd.engine.quantities import binary, duration, si
from nimbus_sd.engine.source import Sample

_CELL_UM2 = 64.0  # one cell per so many µm²: dense tissue


@dataclass(frozen=True)
class Estimate:
    """What a run will take, were every tile to hold labels.

    Attributes
    ----------
    n_samples, n_blocks, n_tiles_markers
        Images; tiles of all of them; tiles x markers x views.
    model_pixels, halo_ratio
        Model px that the network sees, halo, markers and views included; the same over
        those kept.
    flop
        Multiplications and additions of the convolutions and matrix products.
    bytes_image, bytes_labels
        Decoded pixels of the chosen channels, and labels, that scoring reads, halo included.
    seconds, seconds_forward, seconds_read, seconds_normalization
        The whole run, and its parts: scoring takes the longer of forward and reading,
        which overlap; fitting the normalisation (0.0 where none is fitted) comes before.
    memory_bytes, memory_device_bytes
        Peak on top of what the process holds now, without the table of cells: of one
        process, and of one device that has memory of its own.
    pixels_per_second
        Model px that the network takes, all workers together.
    device, precision, n_workers
        Where it was timed; how many such share the blocks.
    tile
        Sides of the tiles' cores in model px, smallest first.
    """

    n_samples: int
    n_blocks: int
    n_tiles_markers: int
    model_pixels: int
    halo_ratio: float
    flop: float
    bytes_image: int
    bytes_labels: int
    seconds: float
    seconds_forward: float
    seconds_read: float
    seconds_normalization: float
    memory_bytes: int
    memory_device_bytes: int
    pixels_per_second: float
    device: str
    precision: str
    n_workers: int
    tile: tuple[int, ...]

    def lines(self) -> list[str]:
        """Aligned lines for people."""
        workers = f"{self.n_workers} x " if self.n_workers > 1 else ""
        memory = binary(self.memory_bytes)
        if self.memory_device_bytes:
            memory += f", and {binary(self.memory_device_bytes)} on the device"
        parts = [f"forward {duration(self.seconds_forward)}", f"reading {duration(self.seconds_read)}"]
        fit = self.seconds_normalization
        stages = (f"normalisation {duration(fit)}, then " if fit else "") + " beside ".join(parts)
        rows = {
            "samples": f"{self.n_samples:,}",
            "blocks": f"{self.n_blocks:,} at most (those without labels are skipped)",
            "tile": f"{' or '.join(map(str, self.tile))} px",
            "tiles": f"{self.n_tiles_markers:,} at most (blocks x markers x views)",
            "model pixels": f"{si(self.model_pixels, 'px')}, {self.halo_ratio:.2f} x those kept (halo)",
            "computation": f"{si(self.flop, 'FLOP')} at most",
            "image": f"{si(self.bytes_image, 'B')} to read at most",
            "labels": f"{si(self.bytes_labels, 'B')} to read",
            "time": f"about {duration(self.seconds)} if all blocks hold labels ({stages})",
            "memory": f"{memory} (without the table)",
            "device": f"{workers}{self.device}, {self.precision}, {si(self.pixels_per_second, 'px/s')}",
        }
        width = max(map(len, rows))
        return [f"{name:<{width}}  {value}" for name, value in rows.items()]

    def to_dict(self) -> dict[str, object]:
        """Plain numbers, strings and lists, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def estimate(
    predictor: Predictor,
    samples: Sequence[Sample],
    channels: Sequence[str],
    *,
    with_normalization: bool,
    plans: Sequence[TilePlan] | None = None,
    n_workers: int = 1,
) -> Estimate:
    """Count a run from metadata, and time a small part of it (a few seconds).

    Parameters
    ----------
    predictor
        Plans, and is timed.
    samples, channels
        What would be scored.
    with_normalization
        Whether the run fits the normalisation first, which reads every pixel once more.
    plans
        One per sample; None asks the predictor.
    n_workers
        How many of such devices share the blocks.

    Notes
    -----
    Which tiles hold labels is known only when the labels are read, so counts are upper
    ends. Times leave out ``compiled``, the cell head, and what a run does between passes
    (a tenth to a quarter of small tiles' time); the normalisation is taken to read as
    fast as the tiles are read.
    """
    if plans is None:
        plans = [predictor.plan(s, n_workers=n_workers) for s in samples]
    counts = [_Count.of(s, p) for s, p in zip(samples, plans, strict=True)]
    times = len(channels) * len(predictor.config.views)
    shapes = sum((c.shapes for c in counts), Counter[tuple[int, int]]())
    pixels = sum(y * x * n for (y, x), n in shapes.items()) * times
    flop = sum(forward_flop(predictor.net, *shape) * n for shape, n in shapes.items()) * times
    image = sum(c.read_pixels * s.image.dtype.itemsize for c, s in zip(counts, samples, strict=True)) * len(
        channels
    )
    labels = sum(c.label_pixels * s.labels.dtype.itemsize for c, s in zip(counts, samples, strict=True))
    model_rate, read_rate = calibrate(predictor, samples, channels=channels, plans=plans)
    forward, read = pixels / model_rate / n_workers, (image + labels) / read_rate / n_workers
    raw = sum(math.prod(s.image.shape) * s.image.dtype.itemsize for s in samples) * len(channels)
    fit = raw / read_rate if with_normalization else 0.0
    peaks = [_memory(predictor, s, p, channels) for s, p in zip(samples, plans, strict=True)]
    return Estimate(
        n_samples=len(samples),
        n_blocks=sum(map(len, plans)),
        n_tiles_markers=sum(map(len, plans)) * times,
        model_pixels=pixels,
        halo_ratio=pixels / max(sum(p.y.model_size * p.x.model_size for p in plans) * times, 1),
        flop=float(flop),
        bytes_image=image,
        bytes_labels=labels,
        seconds=max(forward, read) + fit,
        seconds_forward=forward,
        seconds_read=read,
        seconds_normalization=fit,
        memory_bytes=max((host for host, _ in peaks), default=0),
        memory_device_bytes=max((device for _, device in peaks), default=0),
        pixels_per_second=model_rate * n_workers,
        device=str(predictor.device),
        precision=predictor.precision,
        n_workers=n_workers,
        tile=tuple(sorted({p.tile for p in plans})),
    )


@dataclass(frozen=True)
class _Count:
    """Tiles by (y, x) of the network's input; full-resolution px that one channel and the labels read."""

    shapes: Counter[tuple[int, int]]
    read_pixels: int
    label_pixels: int

    @classmethod
    def of(cls, sample: Sample, plan: TilePlan) -> _Count:
        # tiles are the product of their rows and columns: a slide's thousands need not be visited
        n_y, n_x = plan.grid
        edges = ([plan[i * n_x] for i in range(n_y)], [plan[i] for i in range(n_x)])
        y, x = (Counter(t.outer[a].size for t in tiles) for a, tiles in enumerate(edges))
        shapes = Counter({(h, w): n * m for h, n in y.items() for w, m in x.items()})
        read = [sum(t.read[a].size for t in tiles) for a, tiles in enumerate(edges)]
        # labels are read with a margin of 1 px, inside the image
        margin = [
            sum(min(t.read[a].stop + 1, size) - max(t.read[a].start - 1, 0) for t in tiles)
            for a, (tiles, size) in enumerate(zip(edges, sample.labels.shape, strict=True))
        ]
        return cls(shapes, math.prod(read), math.prod(margin))


def _memory(predictor: Predictor, sample: Sample, plan: TilePlan, channels: Sequence[str]) -> tuple[int, int]:
    """Peak bytes of the host and of the device while the sample's largest tiles are scored."""
    (n_y, n_x), config = plan.grid, predictor.config
    # the first has no halo on two sides, the next may be the last and cut short
    near = {min(i, n_y - 1) * n_x + min(j, n_x - 1) for i in (0, 1) for j in (0, 1)}
    tile = max((plan[i] for i in near), key=lambda t: math.prod(t.outer_shape))
    outer, core, read = (math.prod(i.size for i in part) for part in (tile.outer, tile.core, tile.read))
    item = sample.image.dtype.itemsize
    group = max(map(len, channel_groups(sample.image, plan, channels)), default=0)
    n_inputs = min(predictor.network.per_pass(tile.outer_shape), group * len(config.views))
    weights = sum(p.nbytes for p in predictor.net.parameters())
    out = group * len(config.views) * core * 4
    network = predictor.budget.per_pixel * outer * n_inputs + weights + out
    # inputs wait in the readers' window; each reader holds raw pixels and float copies of one plane
    waiting = (config.n_threads + 2) * outer * 2 * group * PRECISIONS[predictor.precision].itemsize
    reading = max(config.n_threads, 1) * read * (group * item + sample.labels.dtype.itemsize + 16)
    cells = core * predictor.card.mpp**2 / _CELL_UM2
    columns = len(channels) * (1 + config.intensity + config.per_view * len(config.views)) + 4
    if predictor.on_device:  # raw pixels wait and go up; inputs are made there, through float copies
        up = read * group * item
        network += 3 * up + waiting // (config.n_threads + 2) + 8 * read * group
        waiting, out = (config.n_threads + 2) * up, 0
    host = waiting + reading + out + int(2 * 8 * cells * columns)
    return (host + network, 0) if predictor.device.type == "cpu" else (host, network)
