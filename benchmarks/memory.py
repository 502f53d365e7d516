"""Peak memory of ``nb.tl.predict`` does not grow with the image: two sizes, the same number of cells.

The network is a small fake, and the tile is fixed, so that what is measured is the
machinery: tile plan, lazy reads, quantiles, partials, table. Each run is a process of
its own that opens a zarr store and predicts; its peak resident memory is what counts.
Pixels and cells lie in a few regions spread over the image, across the borders of tiles;
everywhere else the store holds no chunks, so that a slide takes little room on disk. Its
pixels are read all the same: quantiles go over the whole image. What cells cost is found
apart, from two cell counts on one image. ``--plan`` measures one image instead, a slide
of 35 channels and 87 gigapixels.
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

import numpy as np
import spatialdata as sd
import torch
import zarr

import nimbus_sd as nb
from _common import machine, normalization, square_cells, store_spatialdata, table
from nimbus_sd.models import LoadedModel, ModelCard, UNet, UNetConfig

TARGET = 0.10
PLAN = (35, 45_477, 54_490)
PLAN_TARGET = 4.0
_CHUNK = 1024
_REGION = 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sides", type=int, nargs=2, default=[8192, 32_768], help="two image sides in px")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--dtype", default="uint8", choices=["uint8", "uint16"])
    parser.add_argument("--cells", type=int, default=4096, help="cells in both images")
    parser.add_argument("--regions", type=int, default=16, help="regions that hold them, a square number")
    parser.add_argument("--many", type=int, default=1_000_000, help="cells for the cost per cell")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plan", action="store_true", help="a slide of 35 channels uint16 instead")
    parser.add_argument("--plan-shape", type=int, nargs=3, default=PLAN, metavar=("C", "Y", "X"))
    parser.add_argument("--plan-cells", type=int, default=100_000)
    parser.add_argument(
        "--fit", action=argparse.BooleanOptionalAction, default=True, help="find the quantiles, too"
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, tile=args.tile, threads=args.threads, fit=args.fit)
        return
    print(machine())
    if args.plan:
        slide(args)
    else:
        growth(args)


def slide(args: argparse.Namespace) -> None:
    """Peak on one slide."""
    shape = tuple(args.plan_shape)
    result = one_run(shape, "uint16", args.plan_cells, args)
    quantiles = "quantiles fitted" if args.fit else "scales given"
    table(
        f"{shape[0]} channels uint16, tile {args.tile}, {args.threads} reader threads, {quantiles} "
        f"(target: peak ≤ {PLAN_TARGET:.0f} GiB)",
        [_row(shape, result) | {"peak GiB": result["peak"] / 2**30}],
    )


def growth(args: argparse.Namespace) -> None:
    """Two sizes with the same cells, and one with many cells."""
    small, large = args.sides
    runs = [(small, args.cells), (large, args.cells), (small, args.many)]
    shapes = [(args.channels, side, side) for side, _ in runs]
    results = [
        one_run(shape, args.dtype, cells, args) for shape, (_, cells) in zip(shapes, runs, strict=True)
    ]
    table(
        f"{args.channels} channels {args.dtype}, tile {args.tile}, {args.threads} reader threads "
        f"(target: {(large / small) ** 2:.0f} x the pixels, peak ≤ {TARGET:+.0%})",
        [_row(shape, r) for shape, r in zip(shapes, results, strict=True)],
    )
    first, second, many = results
    above = [(r["peak"] - r["before"]) / 1e6 for r in (first, second)]
    entries = (many["cells"] - first["cells"]) * args.channels
    print(f"\n  {(large / small) ** 2:.0f} x the pixels: peak {second['peak'] / first['peak'] - 1:+.1%},")
    print(f"  above what imports and opening take {above[0]:.0f} MB to {above[1]:.0f} MB")
    if entries:
        print(f"  per cell and marker: {(many['peak'] - first['peak']) / entries:.0f} bytes")


def _row(shape: tuple[int, ...], result: dict) -> dict:
    return {
        "image": f"{shape[1]} x {shape[2]}",
        "cells": result["cells"],
        "zarr MB": result["stored"] / 1e6,
        "pixels MB": result["pixels"] / 1e6,
        "before MB": result["before"] / 1e6,
        "peak MB": result["peak"] / 1e6,
        "s": result["seconds"],
    }


def one_run(shape: tuple[int, ...], dtype: str, cells: int, args: argparse.Namespace) -> dict:
    """Write a store, predict from it in a fresh process, remove it."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "field.zarr"
        return {**write(store, shape, dtype, cells, args.regions), **measure(store, args)}


def write(store: Path, shape: tuple[int, ...], dtype: str, cells: int, regions: int) -> dict:
    """Write a sparse store with about `cells` squares of cells over noise, region by region.

    With more cells than the regions hold at the closest pitch, regions cover the image.
    """
    channels, *sides = shape
    # an ordinary store of one chunk, whose arrays then grow: zarr keeps no chunk that was never written
    corner = np.zeros((_CHUNK, _CHUNK), np.uint32)
    store_spatialdata(store, np.zeros((channels, *corner.shape), dtype), corner, chunk=_CHUNK)
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    image, labels = (_only_array(group[name]) for name in ("images/image", "labels/labels"))
    image.resize(shape)
    labels.resize(tuple(sides))
    zarr.consolidate_metadata(group.store)
    noise = np.random.default_rng(0).poisson(3, (_REGION, _REGION)).astype(dtype)
    wanted = _REGION // 8
    origins = _lattice(sides, round(regions**0.5))
    if cells > len(origins) * wanted**2:
        origins = [(y, x) for y in range(0, sides[0], _REGION) for x in range(0, sides[1], _REGION)]
    per_side = min(max(round((cells / len(origins)) ** 0.5), 1), wanted)
    pitch = _REGION // per_side
    first = 1
    for y, x in origins:
        height, width = (min(_REGION, n - o) for n, o in zip(sides, (y, x), strict=True))
        area = slice(y, y + height), slice(x, x + width)
        squares = square_cells((height, width), side=min(pitch - 1, 12), pitch=pitch, first=first)
        labels[area] = squares
        first = max(first, int(squares.max()) + 1)
        for c in range(channels):
            image[(c, *area)] = np.roll(noise, 37 * c, axis=1)[:height, :width]
    return {
        "cells": first - 1,
        "stored": sum(f.stat().st_size for f in store.rglob("*") if f.is_file()),
        "pixels": image.nbytes + labels.nbytes,
    }


def _only_array(group: zarr.Group) -> zarr.Array:
    _, array = next(iter(group.arrays()))
    return array


def _lattice(sides: list[int], n: int) -> list[tuple[int, int]]:
    """Origins of n x n regions spread evenly; they are no multiples of a chunk or tile."""

    def along(size: int) -> list[int]:
        step = size / n
        middle = [int((i + 0.5) * step - _REGION / 2) for i in range(n)]
        return sorted({min(max(o, 0), max(size - _REGION, 0)) for o in middle})

    return [(y, x) for y in along(sides[0]) for x in along(sides[1])]


def measure(store: Path, args: argparse.Namespace) -> dict:
    """Run one prediction in a fresh process and return what it reports."""
    command = [sys.executable, __file__, "--child", store, "--tile", args.tile, "--threads", args.threads]
    command += [] if args.fit else ["--no-fit"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def child(store: Path, *, tile: int, threads: int, fit: bool) -> None:
    """Predict from `store` and print peak memory as JSON."""
    torch.manual_seed(0)
    config = UNetConfig(depth=2, width=2)
    card = ModelCard("fake", architecture={"depth": 2, "width": 2}, stride=config.stride, halo=config.halo)
    model = LoadedModel(UNet(config).eval(), card)
    sdata = sd.read_zarr(store)
    before, start = peak(), time.perf_counter()
    fitted = None if fit else normalization(sdata["image"].c.values.tolist(), 10.0)
    nb.tl.predict(
        sdata, model=model, mpp=1.0, normalization=fitted, tile=tile, n_threads=threads, progress=False
    )
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
