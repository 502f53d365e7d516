"""What prediction costs beyond the network: end to end against the bare forward pass of the same tiles.

The floor is the network alone on inputs made beforehand: same tiles (halo included), same batches,
same precision, memory format, folding and reuse of memory. End to end is ``nb.tl.predict`` on a
SpatialData object in a zarr store, from resolving names to the finished table. What
the halo costs is a matter of the tile plan and stands in a column of its own; so do the
seconds that a call takes whatever its size (network made ready, bfloat16 checked, table).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from spatialdata import SpatialData

import nimbus_sd as nb
from _common import (
    machine,
    normalization,
    random_unet,
    side_by_side,
    simulated_marker,
    store_spatialdata,
    table,
)
from nimbus_sd._sdata.samples import resolve_samples
from nimbus_sd.engine.block import prepare, read_tile_labels
from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.memory import reuse_memory
from nimbus_sd.engine.predict import PredictConfig, Predictor
from nimbus_sd.models import LoadedModel

TARGET = 1.10
SCALE = 1000.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="image side in px at 1 µm (default: 1024)")
    parser.add_argument("--markers", type=int, default=4, help="markers of the image (default: 4)")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 16], help="64 published, 16 bundled")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"], choices=list(PRECISIONS))
    parser.add_argument("--tile", type=int, help="tile side in px (default: what predict chooses)")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(machine())
    image, labels = simulated_marker(args.side)
    image = np.concatenate([np.roll(image, 37 * i, axis=(1, 2)) for i in range(args.markers)])
    with tempfile.TemporaryDirectory() as folder:
        sdata = store_spatialdata(Path(folder) / "field.zarr", image, labels, chunk=512)
        rows = [
            {"network": f"width {width}", **measure(sdata, model, precision, args)}
            for width, model in ((w, random_unet(w)) for w in args.widths)
            for precision in args.precisions
        ]
    table(
        f"{args.markers} marker(s) of {args.side} x {args.side} px, {labels.max()} labels, CPU "
        f"(target at width 64: end to end / bare ≤ {TARGET:.2f})",
        rows,
    )


def measure(sdata: SpatialData, model: LoadedModel, precision: str, args: argparse.Namespace) -> dict:
    """Time the bare network, the engine around it and the public call around that."""
    config = PredictConfig(precision=precision, device="cpu", tile=args.tile)
    predictor = Predictor(model, config)
    found = resolve_samples(sdata, image=None, labels=None, channels="all", mpp=1.0)
    sample, channels = found.samples[0].sample, found.channels
    plan = predictor.plan(sample)
    scale = np.full(len(channels), SCALE)
    batches = []
    for tile in plan:
        item = prepare(
            sample,
            plan,
            tile,
            tuple(range(len(channels))),
            read_tile_labels(sample.labels, plan, tile),
            scale=scale,
            transform=predictor.card.transform,
            dtype=PRECISIONS[precision],
            intensity=False,
        )
        if item.batch is not None:
            batches += item.batch.split(predictor.network.per_pass(item.batch.shape[-2:]))

    def bare() -> None:
        # the way the engine handles memory is part of neither side: the floor has it, too
        with torch.inference_mode(), reuse_memory():
            for batch in batches:
                predictor.net(batch)

    def end_to_end() -> None:
        nb.tl.predict(
            sdata,
            model=model,
            mpp=1.0,
            normalization=normalization(channels, SCALE),
            tile=args.tile,
            precision=precision,
            device="cpu",
            overwrite=True,
            progress=False,
        )

    best = side_by_side(
        {
            "bare": bare,
            "engine": lambda: predictor.run(sample, channels, scale),
            "end to end": end_to_end,
        },
        repeats=args.repeats,
    )
    return {
        "precision": precision,
        "tiles": len(plan),
        "bare forward s": best["bare"],
        "engine s": best["engine"],
        "end to end s": best["end to end"],
        "engine / bare": best["engine"] / best["bare"],
        "end to end / bare": best["end to end"] / best["bare"],
        "once per call s": best["end to end"] - best["engine"],
        "halo work": plan.halo_ratio,
    }


if __name__ == "__main__":
    main()
