"""Patches of a whole H&E slide per second, and what they take of memory: two sizes, the same number of cells.

The slide is simulated H&E, chunk by chunk the same few tiles: each chunk is a hard link to one of
them, so that it takes little room on disk, while every chunk is decoded as any other would
be. Half of the cells are spread over the slide, half lie close together in one region. Three
ways: patches in the order of the chunks, shuffled through a buffer as training takes them, and
`nb.tl.predict_subtypes` with a network that takes next to no time. Each run is a process of its own;
its peak resident memory is what counts. The cache of the operating system is warm.
"""

from __future__ import annotations

import argparse
import json
import os
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
import zarr
from spatialdata.models import Image2DModel, PointsModel
from spatialdata.transformations import Identity
from torch import Tensor, nn

import nimbus_sd as nb
from _common import machine, table
from nimbus_sd.models.subtyper import SubtypeCard, SubtypeModel
from nimbus_sd.simulation import SectionConfig, simulate_section

TARGET = 1000.0
GROWTH = 0.15
WAYS = ("in chunk order", "shuffled", "predicted")
_CHUNK = 1024
_TILES = 4
_MPP = 0.325


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sides", type=int, nargs=2, default=[8192, 60_000], help="two slide sides in px")
    parser.add_argument("--cells", type=int, default=200_000, help="on both slides")
    parser.add_argument("--dense", type=int, default=4096, help="side of the region that holds half of them")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--buffer", type=int, default=4096, help="patches to shuffle among")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--child", nargs=2, metavar=("STORE", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Path(args.child[0]), args.child[1], args)
        return
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        tiles = simulated_tiles()
        stores = [write(Path(folder) / f"{side}.zarr", side, tiles) for side in args.sides]
        for way in args.ways:
            report(way, [measure(store, way) for store in stores], stores, args)


def report(way: str, results: list[dict], stores: list[Path], args: argparse.Namespace) -> None:
    """Print both sizes, and what the larger takes more."""
    rows = [
        {
            "slide": f"{side} x {side}",
            "patches": r["n"],
            "pixels GB": 3 * side**2 / 1e9,
            "s": r["seconds"],
            "patches/s": r["n"] / r["seconds"],
            "to the target": r["n"] / r["seconds"] / TARGET,
            "before MB": r["before"] / 1e6,
            "peak MB": r["peak"] / 1e6,
        }
        for side, r in zip(args.sides, results, strict=True)
    ]
    first, second = results
    table(
        f"{way}: patches of 3 x {args.size} x {args.size} uint8, chunks (3, {_CHUNK}, {_CHUNK}), "
        f"{args.threads} threads read; target {TARGET:.0f} patches/s, peak ≤ {GROWTH:+.0%}",
        rows,
    )
    times = (args.sides[1] / args.sides[0]) ** 2
    print(f"  {times:.0f} x the pixels: peak {second['peak'] / first['peak'] - 1:+.1%}")


def simulated_tiles() -> list[np.ndarray]:
    """Chunks ``(3, 1024, 1024)`` of H&E: one simulated section, turned."""
    he = simulate_section(0, SectionConfig(shape=(_CHUNK, _CHUNK), mpp=_MPP)).he
    return [np.ascontiguousarray(np.rot90(he, i, axes=(1, 2))) for i in range(_TILES)]


def write(path: Path, side: int, tiles: list[np.ndarray]) -> Path:
    """A slide whose chunks are links to a few files."""
    array = zarr.create_array(path, shape=(3, side, side), chunks=(3, _CHUNK, _CHUNK), dtype="uint8")
    n = -(-side // _CHUNK)
    for y in range(n):
        folder = path / "c" / "0" / str(y)
        folder.mkdir(parents=True, exist_ok=True)
        for x in range(n):
            which = (3 * y + x) % _TILES
            source = path / f"tile{which}"
            if not source.exists():
                array[:, :_CHUNK, :_CHUNK] = tiles[which]
                (path / "c" / "0" / "0" / "0").rename(source)
            os.link(source, folder / str(x))
    return path


def measure(store: Path, way: str) -> dict:
    """One run in a fresh process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", str(store), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def child(store: Path, way: str, args: argparse.Namespace) -> None:
    """Take every patch once and print time and peak memory as JSON."""
    sdata = opened(store, args.cells, args.dense)
    before, start = peak(), time.perf_counter()
    n = 0
    if way == "predicted":
        card = SubtypeCard("colour", {"markers": ["CD45", "CD3e"]}, mpp=_MPP, patch=args.size)
        nb.tl.predict_subtypes(
            sdata, model=SubtypeModel(Colour(), card), n_threads=args.threads, client=False, progress=False
        )
        n = sdata["subtypes"].n_obs
    else:
        patches = nb.pp.cell_patches(
            sdata,
            size=args.size,
            channels="all",
            raw=True,
            shuffle=way == "shuffled",
            buffer=args.buffer,
            n_threads=args.threads,
            progress=False,
        )
        n = sum(len(batch["patch"]) for batch in patches.batches(256))
    if n != args.cells:
        msg = f"{n} of {args.cells} patches came"
        raise RuntimeError(msg)
    print(json.dumps({"n": n, "before": before, "peak": peak(), "seconds": time.perf_counter() - start}))


class Colour(nn.Module):
    """Logits from the colour of a few px in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([[2.0, -1.0, 0.0], [0.0, 1.0, -2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, y, x) to (b, 2)."""
        middle = x.shape[-1] // 2
        return x[:, :, middle - 4 : middle + 4, middle - 4 : middle + 4].mean((-1, -2)) @ self.mix.T


def opened(store: Path, cells: int, dense: int) -> sd.SpatialData:
    """The slide, lazily, and its cells."""
    pixels = da.from_zarr(zarr.open_array(store, mode="r"))
    side = pixels.shape[-1]
    rng = np.random.default_rng(0)
    spread = rng.uniform(0, side - 1, (cells // 2, 2))
    close = side / 3 + rng.uniform(0, min(dense, side / 2), (cells - cells // 2, 2))
    to = {"slide": Identity()}
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=to)
    points = PointsModel.parse(np.concatenate([spread, close]), transformations=to)
    return sd.SpatialData(images={"he": image}, points={"nuclei": points}, attrs={"nimbus_sd": {"mpp": _MPP}})


def peak() -> int:
    """Bytes of resident memory at most so far; not those of the process that this one was forked from."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text(encoding="ascii").splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
