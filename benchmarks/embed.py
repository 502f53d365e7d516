"""``nb.tl.embed`` from a zarr store to a table, against a plain loop over patches with the same network.

    python benchmarks/embed.py [--side 4096] [--cells 20000] [--markers 38] [--kind next_channel]

The loop takes one cell after the other: its rectangle, normalised, through the network in a batch of one. It
is measured with the image in memory, which is the kinder way, and reading each rectangle from the store, on
fewer cells because it takes long. "forward alone" is the network on normalised patches that lie in memory,
256 at a time, in the layout of memory that it runs best in: what no reading at all would give. All give the
same embeddings, or the benchmark stops.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import spatialdata as sd
import torch
import zarr
from spatialdata.models import Image2DModel, PointsModel

import nimbus_sd as nb
from _common import machine, seconds, side_by_side, simulated_marker, table
from nimbus_sd._sdata.elements import ElementImage
from nimbus_sd.models.embedding import EmbeddingModel, build_embedding, load_embedding

TARGET = 2.0
TOLERANCE = 1e-4
SCALE = 2000.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--markers", type=int, default=38)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--crop", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--kind", default="next_channel", help="or cim")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="readers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop-cells", type=int, default=2000, help="cells of the loop in memory")
    parser.add_argument("--store-cells", type=int, default=50, help="cells of the loop that reads the store")
    args = parser.parse_args()
    print(machine())
    model = random_model(args)
    with tempfile.TemporaryDirectory() as folder:
        sdata, image, centers = make_store(Path(folder) / "slide.zarr", args)
        rows = measure(sdata, image, centers, model, args)
    table(
        f"{args.side} x {args.side} px, {args.markers} channels uint16, {args.cells} cells, crops of "
        f"{args.crop} px, {args.kind}, {args.device} (target: embed ≥ {TARGET:.0f} times the loop in memory)",
        rows,
    )


def measure(
    sdata: sd.SpatialData,
    image: np.ndarray,
    centers: np.ndarray,
    model: EmbeddingModel,
    args: argparse.Namespace,
) -> list[dict]:
    """Time every way, after all have given the same embeddings."""
    stored = ElementImage("image", sdata["image"], model.markers).array
    first, few = centers[: args.loop_cells], centers[: args.store_cells]
    net = model.net.to(args.device)
    batch = next(batches(image, first, args.crop, 256)).to(args.device)

    def embed() -> None:
        nb.tl.embed(
            sdata,
            model=model,
            device=args.device,
            precision=args.precision,
            n_threads=args.threads,
            overwrite=True,
            progress=False,
        )

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return net(batch).cpu().numpy()

    check(embed, sdata, plain_loop(image, few, net, args), forward())
    from_store = seconds(lambda: plain_loop(stored, few, net, args)) / len(few)
    best = side_by_side(
        {"embed": embed, "loop": lambda: plain_loop(image, first, net, args), "forward": forward},
        repeats=args.repeats,
    )
    times = {
        "embed, store to table": best["embed"] / len(centers),
        "loop, image in memory": best["loop"] / len(first),
        f"loop, from the store ({len(few)} cells)": from_store,
        "forward alone, batch of 256": best["forward"] / len(batch),
    }
    ours = times["embed, store to table"]
    return [
        {"way": way, "cells/s": 1 / each, "embed is faster by": each / ours} for way, each in times.items()
    ]


def check(embed: Callable[[], None], sdata: sd.SpatialData, looped: np.ndarray, forward: np.ndarray) -> None:
    """Stop unless the three agree."""
    embed()
    found = sdata["embedding"].obsm["X_nextchannel"]
    gap = max(np.abs(found[: len(other)] - other).max() for other in (looped, forward))
    if gap > TOLERANCE * max(float(np.abs(found).max()), 1.0):
        sys.exit(f"embeddings differ by {gap:.3g}: times would compare different things")


def patch_of(image: np.ndarray | zarr.Array, center: np.ndarray, crop: int) -> torch.Tensor:
    """One normalised patch ``(1, c, y, x)``."""
    y, x = (int(np.floor(v + 0.5)) - crop // 2 for v in center)
    raw = np.asarray(image[:, y : y + crop, x : x + crop]).astype(np.float32)
    return torch.from_numpy(np.sqrt((raw / SCALE).clip(0, 1)))[None]


def plain_loop(
    image: np.ndarray | zarr.Array, centers: np.ndarray, net: torch.nn.Module, args: argparse.Namespace
) -> np.ndarray:
    """Embeddings, a cell at a time."""
    with torch.inference_mode():
        return np.concatenate(
            [net(patch_of(image, c, args.crop).to(args.device)).cpu().numpy() for c in centers]
        )


def batches(image: np.ndarray, centers: np.ndarray, crop: int, size: int) -> Iterator[torch.Tensor]:
    """Normalised patches, `size` at a time, channels last."""
    for i in range(0, len(centers), size):
        x = torch.cat([patch_of(image, c, crop) for c in centers[i : i + size]])
        yield x.contiguous(memory_format=torch.channels_last)


def random_model(args: argparse.Namespace) -> EmbeddingModel:
    """A network with random weights, which takes as long as a trained one."""
    torch.manual_seed(0)
    markers = tuple(f"marker{i}" for i in range(args.markers))
    net = build_embedding({"kind": args.kind, "markers": markers, "size": 2 * args.crop}).eval()
    net = net.to(memory_format=torch.channels_last)
    model = load_embedding(net)
    card = replace(model.card, crop=args.crop, scale=dict.fromkeys(markers, SCALE))
    return EmbeddingModel(net, card)


def make_store(path: Path, args: argparse.Namespace) -> tuple[sd.SpatialData, np.ndarray, np.ndarray]:
    """A simulated marker repeated over the field, shifted from channel to channel, and random centres (y, x).

    No centre is so near to the border that its patch would have to be filled.
    """
    marker = simulated_marker(512)[0][0]
    reps = -(-args.side // 512)
    tiled = np.tile(marker, (reps, reps))[: args.side, : args.side]
    image = np.stack([np.roll(tiled, 37 * i, axis=(0, 1)) for i in range(args.markers)])
    rng = np.random.default_rng(0)
    centers = rng.uniform(args.crop, args.side - args.crop, (args.cells, 2))
    names = [f"marker{i}" for i in range(args.markers)]
    pixels = da.from_array(image, chunks=(1, args.chunk, args.chunk))
    points = pd.DataFrame({"x": centers[:, 1] + 0.5, "y": centers[:, 0] + 0.5})
    sdata = sd.SpatialData(
        images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=names)},
        points={"cells": PointsModel.parse(points)},
    )
    sdata.write(path)
    return sd.read_zarr(path), image, centers


if __name__ == "__main__":
    main()
