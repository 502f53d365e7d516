"""What a run will cost, before it starts: counted from metadata, timed on a small part of it."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nimbus_sd.arrays import Tile, TilePlan
from nimbus_sd.engine.block import to_model_pixels
from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.memory import reuse_memory
from nimbus_sd.engine.output import is_out_of_memory
from nimbus_sd.engine.predict import Predictor
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.source import ImageSource, Sample, check_planes

# as the predictor packs channels and batches; a test compares them
_GROUP_BYTES = 256 << 20
_CPU_BATCH_PIXELS = 1 << 20
_PASS_SECONDS = 0.3  # a forward pass of this length is timed well enough
_REPEAT_SECONDS = 1.0  # one of this length is not timed twice
_READ_SECONDS, _READ_JOBS = 1.0, 8
_CELL_UM2 = 64.0  # one cell per so many µm²: dense tissue

_flop: WeakKeyDictionary[nn.Module, dict[tuple[int, int], int]] = WeakKeyDictionary()


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
        memory = _binary(self.memory_bytes)
        if self.memory_device_bytes:
            memory += f", and {_binary(self.memory_device_bytes)} on the device"
        parts = [f"forward {_duration(self.seconds_forward)}", f"reading {_duration(self.seconds_read)}"]
        fit = self.seconds_normalization
        stages = (f"normalisation {_duration(fit)}, then " if fit else "") + " beside ".join(parts)
        rows = {
            "samples": f"{self.n_samples:,}",
            "blocks": f"{self.n_blocks:,} at most (those without labels are skipped)",
            "tile": f"{' or '.join(map(str, self.tile))} px",
            "tiles": f"{self.n_tiles_markers:,} at most (blocks x markers x views)",
            "model pixels": f"{_si(self.model_pixels, 'px')}, {self.halo_ratio:.2f} x those kept (halo)",
            "computation": f"{_si(self.flop, 'FLOP')} at most",
            "image": f"{_si(self.bytes_image, 'B')} to read at most",
            "labels": f"{_si(self.bytes_labels, 'B')} to read",
            "time": f"about {_duration(self.seconds)} if all blocks hold labels ({stages})",
            "memory": f"{memory} (without the table)",
            "device": f"{workers}{self.device}, {self.precision}, {_si(self.pixels_per_second, 'px/s')}",
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


def forward_flop(net: nn.Module, height: int, width: int) -> int:
    """FLOP of one forward pass over ``(1, 2, height, width)``: nothing is computed or allocated.

    Counts convolutions and matrix products, a multiply-add as two.

    Examples
    --------
    >>> from nimbus_sd.models import UNet, UNetConfig
    >>> f"{forward_flop(UNet(UNetConfig()).eval(), 1024, 1024):.2e}"
    '1.55e+12'
    """
    known = _flop.setdefault(net, {})
    if (height, width) not in known:
        hollow, dtype = _hollow(net)
        x = torch.empty((1, 2, height, width), dtype=dtype, device="meta")
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            hollow(x)
        known[height, width] = counter.get_total_flops()
    return known[height, width]


def _hollow(net: nn.Module) -> tuple[nn.Module, torch.dtype]:
    """A copy whose weights have shapes and no values, and their dtype."""
    memo: dict[int, torch.Tensor] = {}
    dtype = torch.float32
    for tensor in chain(net.buffers(), net.parameters()):
        empty = torch.empty_like(tensor, device="meta")
        dtype = tensor.dtype if tensor.is_floating_point() else dtype
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(net, memo), dtype


def calibrate(
    predictor: Predictor,
    samples: Sequence[Sample],
    *,
    channels: Sequence[str] | None = None,
    plans: Sequence[TilePlan] | None = None,
) -> tuple[float, float]:
    """Time the network and the readers on a small part of the largest sample.

    Returns
    -------
    Model px per s of the forward pass, and bytes of raw pixels per s that the reader
    threads turn into its input (infinite where there is nothing to read).
    """
    if not samples:
        return _forward_rate(predictor, (256, 256)), math.inf
    at = max(range(len(samples)), key=lambda i: math.prod(samples[i].labels.shape))
    sample = samples[at]
    plan = predictor.plan(sample) if plans is None else plans[at]
    tile = plan[(plan.grid[0] // 2) * plan.grid[1] + plan.grid[1] // 2]
    wanted = sample.image.channels if channels is None else channels
    return _forward_rate(predictor, tile.outer_shape), _read_rate(predictor, sample, plan, tile, wanted)


def _forward_rate(predictor: Predictor, shape: tuple[int, int]) -> float:
    """Model px per s: the input grows to the tile, then the batch, until a pass is long enough."""
    stride = predictor.card.stride
    sides = [-(-s // stride) * stride for s in (64, 256, 512, 1024, 2048)]  # the first warms up
    inputs = [(1, *(min(s, n) for n in shape)) for s in sides if s < max(shape)] + [(1, *shape)]
    most = min(_per_pass(predictor, shape), predictor.budget.pixels // math.prod(shape))
    inputs += [(2**i, *shape) for i in range(1, most.bit_length())]
    rate = 0.0
    for n, y, x in inputs:
        batch = torch.rand((n, 2, y, x), device=predictor.device).to(PRECISIONS[predictor.precision])
        try:
            took = _pass_seconds(predictor.net, batch.contiguous(memory_format=torch.channels_last))
        except RuntimeError as error:
            if rate and is_out_of_memory(error):  # a run makes its batches smaller too
                break
            raise
        # the last counts: smaller inputs can be faster (caches) or slower (launches)
        rate = n * y * x / took
        if took >= _PASS_SECONDS:
            break
    return rate


def _pass_seconds(net: nn.Module, batch: torch.Tensor) -> float:
    """Seconds per pass, of two unless the first is long."""
    passes: list[float] = []
    with reuse_memory(), torch.inference_mode():
        while len(passes) < 2 and sum(passes) < _REPEAT_SECONDS:
            start = time.perf_counter()
            net(batch).flatten()[0].item()  # waits for the device
            passes.append(time.perf_counter() - start)
    # the first looks for kernels on a GPU; on a CPU it takes memory from the system, as in each channel group
    return sum(passes) / len(passes) if batch.device.type == "cpu" else min(passes)


def _per_pass(predictor: Predictor, shape: tuple[int, int]) -> int:
    """Inputs that go through the network at once."""
    if predictor.config.batch_size is not None:
        return predictor.config.batch_size
    fits = predictor.budget.pixels
    on_cpu = predictor.device.type == "cpu"
    return max((min(fits, _CPU_BATCH_PIXELS) if on_cpu else fits) // math.prod(shape), 1)


def _read_rate(
    predictor: Predictor, sample: Sample, plan: TilePlan, tile: Tile, channels: Sequence[str]
) -> float:
    """Bytes per s of raw pixels read, checked and resampled, by as many threads as a run has."""
    image, start = sample.image, time.perf_counter()

    def jobs() -> Iterator[list[int]]:
        for group in _by_chunk(image, channels)[:_READ_JOBS]:
            if time.perf_counter() - start < _READ_SECONDS:
                yield group

    def read(group: list[int]) -> int:
        planes = image.read(group, *tile.read)
        check_planes(image, group, planes)
        for plane in planes:
            to_model_pixels(plane, plan, tile, scale=1.0, transform=predictor.card.transform)
        return planes.nbytes

    n_bytes = sum(read_ahead(read, jobs(), n_threads=predictor.config.n_threads))
    return n_bytes / (time.perf_counter() - start) if n_bytes else math.inf


def _by_chunk(image: ImageSource, channels: Sequence[str]) -> list[list[int]]:
    """Positions of `channels`; those of one chunk, which are read together, in one list."""
    sizes = image.chunks[0]
    chunk_of = [i for i, n in enumerate(sizes) for _ in range(n)]
    groups: dict[int, list[int]] = {}
    for c in channels:
        position = image.channels.index(c)
        groups.setdefault(chunk_of[position], []).append(position)
    return list(groups.values())


def _memory(predictor: Predictor, sample: Sample, plan: TilePlan, channels: Sequence[str]) -> tuple[int, int]:
    """Peak bytes of the host and of the device while the sample's largest tiles are scored."""
    (n_y, n_x), config = plan.grid, predictor.config
    # the first has no halo on two sides, the next may be the last and cut short
    near = {min(i, n_y - 1) * n_x + min(j, n_x - 1) for i in (0, 1) for j in (0, 1)}
    tile = max((plan[i] for i in near), key=lambda t: math.prod(t.outer_shape))
    outer, core, read = (math.prod(i.size for i in part) for part in (tile.outer, tile.core, tile.read))
    item = sample.image.dtype.itemsize
    fits = int(_GROUP_BYTES // (math.prod(plan[0].outer_shape) * max(plan.y.factor, 1) ** 2 * (item + 8)))
    group = min(max(fits, *map(len, _by_chunk(sample.image, channels)), 1), len(channels))
    n_inputs = min(_per_pass(predictor, tile.outer_shape), group * len(config.views))
    weights = sum(p.nbytes for p in predictor.net.parameters())
    out = group * len(config.views) * core * 4
    network = predictor.budget.per_pixel * outer * n_inputs + weights + out
    # inputs wait in the readers' window; each reader holds raw pixels and float copies of one plane
    waiting = (config.n_threads + 2) * outer * 2 * group * PRECISIONS[predictor.precision].itemsize
    reading = max(config.n_threads, 1) * read * (group * item + sample.labels.dtype.itemsize + 16)
    cells = core * predictor.card.mpp**2 / _CELL_UM2
    columns = len(channels) * (1 + config.intensity + config.per_view * len(config.views)) + 4
    host = waiting + reading + out + int(2 * 8 * cells * columns)
    return (host + network, 0) if predictor.device.type == "cpu" else (host, network)


def _si(value: float, unit: str) -> str:
    """Three digits and a prefix: ``1.8 PFLOP``."""
    rounded = float(f"{value:.3g}")  # 999.9 k is 1 M
    power = min(int(math.log10(rounded)) // 3, 6) if rounded >= 1000 else 0
    return f"{rounded / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}{unit}"


def _binary(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    """The two largest units: ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    total = round(seconds)
    for unit, size, smaller, per in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if total >= size:
            return f"{total // size} {unit} {total % size // per} {smaller}"
    return f"{total} s"
