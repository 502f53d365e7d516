"""Cell-centred patches per second from a local zarr store, against reading its chunks once.

The store is written with spatialdata's defaults, in chunks of one channel and of all
channels. The floor decodes every chunk once with zarr in as many threads and copies as
many bytes as the patches have. Beside it stand a pass as training makes it (shuffled,
batches of normalised float32 tensors), one in chunk order, one of raw pixels, and one from the
cached store of patches. The cache of the operating system is warm for all of them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import spatialdata as sd
from spatialdata.models import Image2DModel, PointsModel

import nimbus_sd as nb
from _common import machine, normalization, seconds, side_by_side, simulated_marker, table
from nimbus_sd._sdata.elements import ElementImage, get_image
from nimbus_sd.arrays import Interval
from nimbus_sd.engine.pixel_counts import chunk_jobs

TARGET = 5000.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--markers", type=int, default=34)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--pitch", type=int, default=20, help="px between cells")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--buffer", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(machine())
    for chunks in ((1, 1024, 1024), (args.markers, 256, 256)):
        with tempfile.TemporaryDirectory() as folder:
            sdata = written(Path(folder) / "image.zarr", chunks, args)
            measure(sdata, chunks, Path(folder), args)


def written(path: Path, chunks: tuple[int, int, int], args: argparse.Namespace) -> sd.SpatialData:
    """An image on disk, and a cell every `pitch` px, moved by up to half of it."""
    marker = np.tile(simulated_marker(512)[0][0], (-(-args.side // 512),) * 2)[: args.side, : args.side]
    image = da.stack([da.from_array(np.roll(marker, 37 * i, axis=(0, 1))) for i in range(args.markers)])
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(args.pitch / 2, args.side, args.pitch)] * 2), -1).reshape(-1, 2)
    cells = pd.DataFrame((grid + rng.uniform(-0.5, 0.5, grid.shape) * args.pitch).clip(0, args.side - 1))
    cells.columns = ["x", "y"]
    channels = [f"marker{i}" for i in range(args.markers)]
    sd.SpatialData(
        images={"image": Image2DModel.parse(image.rechunk(chunks), dims=("c", "y", "x"), c_coords=channels)},
        points={"cells": PointsModel.parse(cells)},
    ).write(path, overwrite=True)
    return sd.read_zarr(path)


def measure(
    sdata: sd.SpatialData, chunks: tuple[int, int, int], folder: Path, args: argparse.Namespace
) -> None:
    """Time whole passes and print patches per second."""
    channels = [f"marker{i}" for i in range(args.markers)]
    shared = {
        "size": args.size,
        "buffer": args.buffer,
        "batch_size": args.batch,
        "n_threads": args.threads,
        "progress": False,
    }
    scaled = shared | {"normalization": normalization(channels, 2000.0)}
    ways: dict[str, Any] = {
        "shuffled, normalised": nb.pp.cell_patches(sdata, **scaled),
        "in chunk order, normalised": nb.pp.cell_patches(sdata, shuffle=False, **scaled),
        "shuffled, raw": nb.pp.cell_patches(sdata, raw=True, **shared),
    }
    cache = seconds(lambda: nb.pp.cell_patches(sdata, cache=folder / "patches.zarr", **scaled))
    ways["from the cached store"] = nb.pp.cell_patches(sdata, cache=folder / "patches.zarr", **scaled)
    first = ways["shuffled, normalised"]
    functions: dict[str, Callable[[], object]] = {name: lambda p=p: consume(p) for name, p in ways.items()}
    functions["decode once"] = lambda: decode(sdata, args.threads)
    one, other = np.ones((2, args.batch, *first.shape[1:]), "uint16")
    functions["copy"] = lambda: [np.copyto(other, one) for _ in range(-(-len(first) // args.batch))]
    took = side_by_side(functions, repeats=args.repeats)
    floor = took["decode once"] + took["copy"]
    rows = [
        {
            "way": name,
            "s": took[name],
            "patches/s": len(first) / took[name],
            "to the floor": took[name] / floor,
            "to the target": len(first) / took[name] / TARGET,
        }
        for name in ways
    ]
    rows.append(
        {
            "way": f"floor: decoding {took['decode once']:.3g} s, copying {took['copy']:.3g} s",
            "s": floor,
            "patches/s": len(first) / floor,
            "to the floor": 1.0,
            "to the target": len(first) / floor / TARGET,
        }
    )
    n, c, y, x = first.shape
    table(
        f"{n} patches of {y} x {x} x {c}, image uint16 of {args.side} x {args.side} px in chunks {chunks}, "
        f"{args.threads} threads read; target {TARGET:.0f} patches/s; the cache took {cache:.3g} s to write",
        rows,
    )


def consume(patches: nb.pp.CellPatches) -> None:
    """One pass; every cell must come."""
    n = sum(len(batch["instance_id"]) for batch in patches.batches())
    if n != len(patches):
        msg = f"{n} of {len(patches)} patches came"
        raise RuntimeError(msg)


def decode(sdata: sd.SpatialData, threads: int) -> None:
    """Decode each chunk of the image once."""
    array = get_image(sdata, "image")
    image = ElementImage("image", array, tuple(map(str, array.coords["c"].values)))

    def one(job: tuple[list[int], Interval, Interval]) -> int:
        return image.read(*job).nbytes

    with ThreadPoolExecutor(threads) as pool:
        sum(pool.map(one, chunk_jobs(image, range(len(image.channels)))))


if __name__ == "__main__":
    main()
