"""``nb.pp.integrated_expression`` against reading the same chunks, a bare ``bincount``, and other packages.

Three floors, each measured beside the engine in the same run. Reading every chunk of
image and labels once with as many threads and adding up its pixels: what any single
pass over the data costs, uncompressed and with zstd. One ``np.bincount`` per channel on
arrays in memory: what the arithmetic costs. And ``spatialdata.aggregate``, squidpy and
harpy on a zarr store, on a smaller field because they take long. harpy
(``harpy-analysis==0.4.2``) runs in an environment of its own: ``--harpy-python``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

import nimbus_sd as nb
from _common import machine, side_by_side, simulated_marker, square_cells, store_arrays, table
from _expression_tools import AGGREGATE_TARGET, compare
from nimbus_sd.engine.expression import summarise
from nimbus_sd.engine.source import ArrayImage, ArrayLabels, Sample

TARGET = 100
BINCOUNT_TARGET = 2.0
TOLERANCE = 1e-6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compare-side", type=int, default=2048, help="field for the other packages")
    parser.add_argument("--harpy-python", type=Path, help="interpreter that has harpy; left out without")
    args = parser.parse_args()
    print(machine())
    image, labels = field(args.side, args.channels, args.cells)
    about = (
        f"{args.side} x {args.side} px, {args.channels} channels uint16, {np.unique(labels).size - 1} cells"
    )
    covered = f"on {float((labels > 0).mean()):.0%} of the area"
    table(
        f"{about} {covered}, zarr, {args.threads} threads (target: ≥ {TARGET} Mpx·ch/s)",
        from_chunks(image, labels, args),
    )
    table(
        f"{about}, arrays in memory (target: ratio to bincount ≤ {BINCOUNT_TARGET:.0f})",
        in_memory(image, labels, args),
    )
    side = args.compare_side
    cells = round(args.cells * (side / args.side) ** 2)
    image, labels = field(side, args.channels, cells)
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), image, labels, args)
    table(
        f"{side} x {side} px, {args.channels} channels, {labels.max()} cells, zarr, {args.threads} threads "
        f"(target: spatialdata.aggregate ≥ {AGGREGATE_TARGET} times our time)",
        rows,
    )


def from_chunks(image: np.ndarray, labels: np.ndarray, args: argparse.Namespace) -> list[dict]:
    """The public call against reading and adding up every chunk once."""
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
    return rows


def in_memory(image: np.ndarray, labels: np.ndarray, args: argparse.Namespace) -> list[dict]:
    """The engine against one ``bincount`` per channel, after both have given the same means."""
    channels = tuple(f"marker{i}" for i in range(len(image)))
    sample = Sample("labels", ArrayImage("image", image, channels), ArrayLabels("labels", labels))

    def bare() -> list[np.ndarray]:
        return [np.bincount(labels.ravel(), weights=plane.ravel()) for plane in image]

    count = np.bincount(labels.ravel())
    ids = np.flatnonzero(count[1:]) + 1
    exact = (np.stack(bare(), axis=1) / np.maximum(count, 1)[:, None])[ids]
    gap = float((np.abs(summarise(sample, channels).statistic("mean") - exact) / exact.clip(1)).max())
    if gap > TOLERANCE:
        sys.exit(f"means differ by {gap:.3g}: times would compare different things")
    threads = sorted({0, 1, args.threads})
    best = side_by_side(
        {"bare": bare, **{str(n): lambda n=n: summarise(sample, channels, n_threads=n) for n in threads}},
        repeats=args.repeats,
    )
    work = image.size / 1e6
    return [
        {
            "reader threads": n,
            "bincount s (one thread)": best["bare"],
            "engine s": best[str(n)],
            "Mpx·ch/s": work / best[str(n)],
            "ratio to bincount": best[str(n)] / best["bare"],
            "largest relative difference": gap,
        }
        for n in threads
    ]


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
