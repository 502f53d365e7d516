"""Throughput of ``nb.pp.integrated_expression`` against reading the same chunks.

The floor reads every chunk of image and labels once with as many threads and adds up
its pixels: what any single pass over the data costs here. Both start from zarr arrays,
once uncompressed and once with zstd.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

import nimbus_sd as nb
from _common import machine, side_by_side, simulated_marker, square_cells, store_arrays, table

TARGET = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(machine())
    image, labels = field(args.side, args.channels, args.cells)
    covered = float((labels > 0).mean())
    work = image.size / 1e6
    rows = []
    for name, compressors in (("none", None), ("zstd", ZstdCodec())):
        with tempfile.TemporaryDirectory() as folder:
            sdata, arrays = store_arrays(
                Path(folder), image, labels, chunk=args.chunk, compressors=compressors
            )
            best = side_by_side(
                {
                    "floor": lambda arrays=arrays: read_all(arrays, args.threads),
                    "mean": lambda sdata=sdata: nb.pp.integrated_expression(
                        sdata, n_threads=args.threads, overwrite=True, progress=False
                    ),
                },
                repeats=args.repeats,
            )
        rows.append(
            {
                "compression": name,
                "floor s": best["floor"],
                "floor Mpx·ch/s": work / best["floor"],
                "integrated_expression s": best["mean"],
                "Mpx·ch/s": work / best["mean"],
                "ratio to floor": best["mean"] / best["floor"],
            }
        )
    table(
        f"{args.side} x {args.side} px, {args.channels} channels uint16, {np.unique(labels).size - 1} cells "
        f"on {covered:.0%} of the area, {args.threads} threads (target: ≥ {TARGET} Mpx·ch/s)",
        rows,
    )


def field(side: int, n_channels: int, n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """A simulated marker repeated over the field, shifted from channel to channel, and square cells."""
    marker = simulated_marker(512)[0][0]
    reps = -(-side // 512)
    tiled = np.tile(marker, (reps, reps))[:side, :side]
    image = np.stack([np.roll(tiled, 37 * i, axis=(0, 1)) for i in range(n_channels)])
    pitch = max(side // round(n_cells**0.5), 2)
    return image, square_cells((side, side), side=max(int(pitch * 0.8), 1), pitch=pitch)


def read_all(arrays: list[zarr.Array], n_threads: int) -> int:
    """Read every chunk once and add up its pixels."""

    def total(job: tuple[zarr.Array, tuple[slice, ...]]) -> int:
        array, where = job
        return int(array[where].sum(dtype=np.int64))

    jobs = [
        (array, tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, array.chunks, strict=True)))
        for array in arrays
        for index in itertools.product(
            *(range(-(-n // c)) for n, c in zip(array.shape, array.chunks, strict=True))
        )
    ]
    with ThreadPoolExecutor(n_threads) as pool:
        return sum(pool.map(total, jobs))


if __name__ == "__main__":
    main()
