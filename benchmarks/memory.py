"""Peak memory of ``nb.tl.predict`` does not grow with the image: two sizes, the same number of cells.

The network is a small fake, and the tile is fixed, so that what is measured is the
machinery: tile plan, lazy reads, quantiles, partials, table. Each run is a process of
its own that opens a zarr store and predicts; its peak resident memory is what counts.
What cells cost is found apart, from two cell counts on one image.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dask.array as da
import numpy as np
import spatialdata as sd
import torch

import nimbus_sd as nb
from _common import machine, square_cells, store_spatialdata, table
from nimbus_sd.models import LoadedModel, ModelCard, UNet, UNetConfig

TARGET = 0.10
_CHUNK = 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sides", type=int, nargs=2, default=[4096, 16_384], help="two image sides in px")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--dtype", default="uint8", choices=["uint8", "uint16"])
    parser.add_argument("--cells", type=int, default=4096, help="cells in both images, a square number")
    parser.add_argument("--many", type=int, default=1_000_000, help="cells for the cost per cell")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, tile=args.tile, threads=args.threads)
        return
    print(machine())
    small, large = args.sides
    runs = [(small, args.cells), (large, args.cells), (small, args.many)]
    results = []
    for side, cells in runs:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "field.zarr"
            results.append({**write(store, side, cells, args), **measure(store, args)})
    table(
        f"{args.channels} channels {args.dtype}, tile {args.tile}, {args.threads} reader threads",
        [
            {
                "image": f"{side} x {side}",
                "cells": r["cells"],
                "zarr MB": r["stored"] / 1e6,
                "pixels MB": r["pixels"] / 1e6,
                "before MB": r["before"] / 1e6,
                "peak MB": r["peak"] / 1e6,
                "s": r["seconds"],
            }
            for (side, _), r in zip(runs, results, strict=True)
        ],
    )
    first, second, many = results
    growth = second["peak"] / first["peak"] - 1
    above = [(r["peak"] - r["before"]) / 1e6 for r in (first, second)]
    entries = (many["cells"] - first["cells"]) * args.channels
    print(f"\n  {(large / small) ** 2:.0f} x the pixels: peak {growth:+.1%} (target: ≤ {TARGET:+.0%}),")
    print(f"  above what imports and opening take {above[0]:.0f} MB to {above[1]:.0f} MB")
    if entries:
        print(f"  per cell and marker: {(many['peak'] - first['peak']) / entries:.0f} bytes")


def write(store: Path, side: int, cells: int, args: argparse.Namespace) -> dict:
    """Write an image that repeats one noisy chunk, and `cells` squares on a grid, without holding either."""
    block = np.random.default_rng(0).poisson(3, (_CHUNK, _CHUNK)).astype(args.dtype)
    per_side = round(cells**0.5)
    pitch = side // per_side

    def pixels(block_info: dict) -> np.ndarray:
        (_, height, width), where = (block_info[None][k] for k in ("chunk-shape", "chunk-location"))
        return np.roll(block, sum(where), axis=1)[None, :height, :width]

    def labels(block_info: dict) -> np.ndarray:
        (y, _), (x, _) = block_info[None]["array-location"]
        return square_cells(
            block_info[None]["chunk-shape"],
            side=min(pitch - 1, 12),
            pitch=pitch,
            origin=(y, x),
            columns=-(-side // pitch),
        )

    chunks = (_CHUNK,) * (side // _CHUNK) + ((side % _CHUNK,) if side % _CHUNK else ())
    image = da.map_blocks(pixels, chunks=((1,) * args.channels, chunks, chunks), dtype=args.dtype)
    cell_map = da.map_blocks(labels, chunks=(chunks, chunks), dtype="uint32")
    store_spatialdata(store, image, cell_map, chunk=_CHUNK)
    return {
        "cells": (-(-side // pitch)) ** 2,
        "stored": sum(f.stat().st_size for f in store.rglob("*") if f.is_file()),
        "pixels": image.nbytes + cell_map.nbytes,
    }


def measure(store: Path, args: argparse.Namespace) -> dict:
    """Run one prediction in a fresh process and return what it reports."""
    command = [sys.executable, __file__, "--child", store, "--tile", args.tile, "--threads", args.threads]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def child(store: Path, *, tile: int, threads: int) -> None:
    """Predict from `store` and print peak memory as JSON."""
    torch.manual_seed(0)
    config = UNetConfig(depth=2, width=2)
    card = ModelCard("fake", architecture={"depth": 2, "width": 2}, stride=config.stride, halo=config.halo)
    model = LoadedModel(UNet(config).eval(), card)
    sdata = sd.read_zarr(store)
    before, start = peak(), time.perf_counter()
    nb.tl.predict(sdata, model=model, mpp=1.0, tile=tile, n_threads=threads, progress=False)
    print(json.dumps({"before": before, "peak": peak(), "seconds": time.perf_counter() - start}))


def peak() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss it starts anew with the program, not with the parent's peak
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
