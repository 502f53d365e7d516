"""Reading through the engine against decoding the same zarr chunks once, and what one read costs on a slide.

The floor decodes every chunk of the image once with zarr in as many threads. Beside it
stand the two passes of a run: chunk by chunk, as quantiles are found, and tile by tile
with its halo, as scores are. Chunks on borders are read by several tiles; how many is a
matter of the tile plan and stands in a column of its own. Latency is measured on a
slide-sized array with no chunk on disk, so that nothing is decoded: it is the cost of
finding out what to read.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.array as da
import numpy as np
import spatialdata as sd
import zarr
from spatialdata.models import Image2DModel
from zarr.codecs import ZstdCodec

from _common import machine, seconds, side_by_side, simulated_marker, square_cells, store_arrays, table
from nimbus_sd._sdata.elements import ElementImage, channel_names, get_image
from nimbus_sd.arrays import Interval, TilePlan, plan_tiles
from nimbus_sd.engine.normalization import chunk_jobs
from nimbus_sd.engine.readahead import read_ahead

SLIDE = (35, 45_477, 54_490)
CHUNKS_TARGET, LATENCY_TARGET = 1.25, 5.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--chunks", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--halo", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slide", type=int, nargs=3, default=SLIDE, metavar=("C", "Y", "X"))
    parser.add_argument("--reads", type=int, default=50, help="reads whose latency is measured")
    args = parser.parse_args()
    print(machine())
    marker = np.tile(simulated_marker(512)[0][0], (-(-args.side // 512),) * 2)[: args.side, : args.side]
    image = np.stack([np.roll(marker, 37 * i, axis=(0, 1)) for i in range(args.channels)])
    rows = [
        throughput(image, chunk, name, compressors, args)
        for chunk in args.chunks
        for name, compressors in (("none", None), ("zstd", ZstdCodec()))
    ]
    table(
        f"{args.channels} channels uint16 of {args.side} x {args.side} px, tile {args.tile}, "
        f"halo {args.halo}, {args.threads} threads (target: chunk by chunk / floor ≤ {CHUNKS_TARGET:.2f})",
        rows,
    )
    c, y, x = args.slide
    table(
        f"one read of a {c} x {y} x {x} uint16 zarr in chunks of 1024 px with none on disk "
        f"(target: ratio to zarr ≤ {LATENCY_TARGET:.0f})",
        latency(args),
    )


def throughput(
    image: np.ndarray, chunk: int, name: str, compressors: object, args: argparse.Namespace
) -> dict:
    """Time the floor and both passes in turns."""
    labels = square_cells(image.shape[1:], side=12, pitch=24)
    plan = plan_tiles(image.shape[1:], factor=1.0, tile=args.tile, halo=args.halo)
    everything = list(range(len(image)))
    with tempfile.TemporaryDirectory() as folder:
        sdata, (stored, _) = store_arrays(Path(folder), image, labels, chunk=chunk, compressors=compressors)
        element = get_image(sdata, "image")
        source = ElementImage("image", element, channel_names(element))

        def pass_over(jobs: Callable) -> None:
            exhaust(read_ahead(lambda job: source.read(*job).nbytes, jobs(), n_threads=args.threads))

        best = side_by_side(
            {
                "floor": lambda: decode_all(stored, args.threads),
                "chunks": lambda: pass_over(lambda: chunk_jobs(source, everything)),
                "tiles": lambda: pass_over(lambda: ((everything, *tile.read) for tile in plan)),
            },
            repeats=args.repeats,
        )
    each = touches(plan, chunk)
    return {
        "chunk": chunk,
        "compression": name,
        "floor s": best["floor"],
        "floor MB/s": image.nbytes / best["floor"] / 1e6,
        "chunk by chunk s": best["chunks"],
        "chunk by chunk / floor": best["chunks"] / best["floor"],
        "tile by tile s": best["tiles"],
        "tile by tile / floor": best["tiles"] / best["floor"],
        "tiles per chunk": each,
        "per chunk touched / floor": best["tiles"] / best["floor"] / each,
    }


def exhaust(iterator: object) -> None:
    """Run an iterator to its end and keep nothing."""
    deque(iterator, maxlen=0)


def decode_all(array: zarr.Array, n_threads: int) -> None:
    """Read every chunk once."""
    jobs = itertools.product(*(range(0, n, c) for n, c in zip(array.shape, array.chunks, strict=True)))

    def read(start: tuple[int, ...]) -> int:
        return array[tuple(slice(s, s + c) for s, c in zip(start, array.chunks, strict=True))].nbytes

    with ThreadPoolExecutor(n_threads) as pool:
        exhaust(pool.map(read, jobs))


def touches(plan: TilePlan, chunk: int) -> float:
    """How many tiles read from a chunk, on average over the image."""
    touched = sum(np.prod([-(-r.stop // chunk) - r.start // chunk for r in tile.read]) for tile in plan)
    return float(touched / np.prod([-(-axis.size // chunk) for axis in (plan.y, plan.x)]))


def latency(args: argparse.Namespace) -> list[dict]:
    """Milliseconds per read at random places, through the element and with zarr itself."""
    shape = tuple(args.slide)
    with tempfile.TemporaryDirectory() as folder:
        stored = zarr.create_array(
            Path(folder) / "slide.zarr", shape=shape, chunks=(1, 1024, 1024), dtype="uint16"
        )
        names = [f"marker{i}" for i in range(shape[0])]
        start = seconds(lambda: da.from_zarr(stored))
        lazy = Image2DModel.parse(da.from_zarr(stored), dims=("c", "y", "x"), c_coords=names)
        sdata = sd.SpatialData(images={"slide": lazy})
        element = get_image(sdata, "slide")
        source = ElementImage("slide", element, tuple(names))
        print(f"\n{element.data.npartitions} chunks; opening them lazily takes {start:.2f} s")
        return [
            _latency(source, stored, channels, side, args)
            for channels in (1, min(8, shape[0]))
            for side in (1, args.tile, args.tile + 2 * args.halo)
        ]


def _latency(
    source: ElementImage, stored: zarr.Array, channels: int, side: int, args: argparse.Namespace
) -> dict:
    rng = np.random.default_rng(0)
    corners = [tuple(int(rng.integers(0, max(n - side, 1))) for n in source.shape) for _ in range(args.reads)]
    wanted = list(range(channels))
    ours, floor = [], []
    for y, x in [corners[0], *corners]:
        area = Interval(y, y + side), Interval(x, x + side)
        ours.append(seconds(lambda a=area: source.read(wanted, *a)))
        floor.append(seconds(lambda a=area: stored[:channels, a[0].slice, a[1].slice]))
    # the first read of each warms up
    a, b = (float(np.median(times[1:])) for times in (ours, floor))
    return {
        "channels": channels,
        "side": side,
        "read ms": a * 1e3,
        "slowest ms": max(ours[1:]) * 1e3,
        "zarr ms": b * 1e3,
        "ratio to zarr": a / b,
        "overhead ms": (a - b) * 1e3,
    }


if __name__ == "__main__":
    main()
