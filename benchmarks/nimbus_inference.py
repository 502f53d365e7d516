"""Side by side with Nimbus-Inference 0.0.5: the same files, weights, scale and settings, in one run.

The published tool needs NumPy < 2 and runs in an environment of its own: give its
interpreter with ``--python``, or let this script make one under ``--env``. Both sides
load weights, import and fit the normalisation before the clock starts and take turns;
both read TIFF or zarr, mask, predict, average over cells and build a table. Pixels are
1 µm, so neither resamples; test-time views are off; the image fits into one input of
the published tool.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch
from anndata import AnnData
from spatialdata import SpatialData

import nimbus_sd as nb
from _common import machine, random_unet, seconds, simulated_marker, square_cells, store_spatialdata, table
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.models import LoadedModel

REQUIREMENTS = ("Nimbus-Inference==0.0.5", "torch==2.13.0")
TARGETS = {("width 64", "bfloat16"): "≥ 2.2", ("width 16", "bfloat16"): "≥ 25"}
SCORE_TARGET = 0.01


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", type=Path, help="interpreter that has Nimbus-Inference 0.0.5")
    parser.add_argument(
        "--env",
        type=Path,
        default=Path(".nox/nimbus-inference"),
        help="where to make that environment when --python is not given (default: %(default)s)",
    )
    parser.add_argument("--side", type=int, default=1024, help="image side in px, a multiple of 16")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.side % 16:
        parser.error(f"--side {args.side}: the published tool takes multiples of 16")
    python = args.python or make_environment(args.env)
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        run(Path(temporary), python, side=args.side, repeats=args.repeats)


def make_environment(folder: Path) -> Path:
    """Create a virtual environment with the published tool, if there is none yet; return its interpreter."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    if subprocess.run([python, "-c", "import nimbus_inference"], capture_output=True, check=False).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    return python


def mixed_labels(side: int) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[int, int]]]:
    """Marker ``(1, side, side)``, labels, and the id ranges of three kinds of cells.

    The upper half holds the simulated segmentation, the lower quarters squares of 144
    and of 16 px, because rounding averages out over a cell's pixels.
    """
    image, labels = simulated_marker(side)
    half = side // 2
    n = int(labels.max())
    large = square_cells((side - half, half), side=12, pitch=14, first=n + 1)
    small = square_cells((side - half, side - half), side=4, pitch=6, first=int(large.max()) + 1)
    labels[half:, :half], labels[half:, half:] = large, small
    ranges = {
        "simulated": (1, n),
        "squares of 144 px": (n + 1, int(large.max())),
        "squares of 16 px": (int(large.max()) + 1, int(small.max())),
    }
    return image, labels, ranges


def run(folder: Path, python: Path, *, side: int, repeats: int) -> None:
    """Write the files, start the published tool, take turns, print both tables."""
    image, labels, ranges = mixed_labels(side)
    fitted = Normalization(
        ("marker0",), (float(np.quantile(image[image > 0], 0.999)),), 0.999, "fov_mean", ("image",)
    )
    sdata = store_spatialdata(folder / "field.zarr", image, labels, chunk=512)
    published, bundled_size = random_unet(64), random_unet(16)
    (folder / "image_data" / "fov0").mkdir(parents=True)
    (folder / "segmentation").mkdir()
    tifffile.imwrite(folder / "image_data" / "fov0" / "marker0.tiff", image[0])
    tifffile.imwrite(folder / "segmentation" / "fov0_whole_cell.tiff", labels)
    torch.save(published.net.state_dict(), folder / "weights.pt")
    (folder / "scale.json").write_text(json.dumps({"marker0": str(fitted.scale[0])}))

    worker = Path(__file__).with_name("_nimbus_inference_worker.py")
    log = (folder / "worker.log").open("w+")
    with subprocess.Popen(
        [python, "-I", worker, folder, str(side)],  # -I: this folder holds a module of the tool's name
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    ) as process:

        def theirs() -> dict:
            process.stdin.write("\n")
            process.stdin.flush()
            return answer()

        def answer() -> dict:
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                sys.exit(f"the published tool stopped:\n{log.read()[-3000:]}")
            return json.loads(line)

        about = answer()
        print(f"{about['tool']}: torch {about['torch']}, {about['threads']} threads, float32")
        ours = {
            (f"width {model.net.config.width}", precision): model
            for model in (published, bundled_size)
            for precision in ("bfloat16", "float32")
        }
        best = dict.fromkeys(ours, np.inf)
        best_theirs = np.inf
        for turn in range(repeats + 1):  # the first one warms up
            took = theirs()["seconds"]
            best_theirs = min(best_theirs, took if turn else np.inf)
            for key, model in ours.items():
                took = seconds(lambda m=model, p=key[1]: predict(sdata, m, fitted, p))
                best[key] = min(best[key], took if turn else np.inf)
        reference = pd.read_csv(theirs()["table"]).set_index("label")["marker0"]
        process.stdin.close()

    rows = [
        {
            "": about["tool"],
            "precision": "float32",
            "s per marker": best_theirs,
            "times faster": 1.0,
            "target": "",
        }
    ]
    rows += [
        {
            "": f"nb.tl.predict, {width}",
            "precision": precision,
            "s per marker": took,
            "times faster": best_theirs / took,
            "target": TARGETS.get((width, precision), ""),
        }
        for (width, precision), took in best.items()
    ]
    table(f"seconds per marker of {side} x {side} px, {len(reference)} cells, CPU", rows)
    rows = []
    for precision in ("float32", "bfloat16"):
        predict(sdata, published, fitted, precision)
        rows += differences(sdata["nimbus"], reference, ranges, precision)
    table(
        f"cell scores against the published tool, same weights (target in float32: largest ≤ {SCORE_TARGET})",
        rows,
    )


def predict(sdata: SpatialData, model: LoadedModel, fitted: Normalization, precision: str) -> None:
    """Run the whole of our side once."""
    nb.tl.predict(
        sdata,
        model=model,
        mpp=1.0,
        normalization=fitted,
        precision=precision,
        device="cpu",
        overwrite=True,
        progress=False,
    )


def differences(ours: AnnData, reference: pd.Series, ranges: dict, precision: str) -> list[dict]:
    """Absolute score differences by kind of cell."""
    scores = pd.Series(ours.X[:, 0], index=ours.obs["instance_id"].to_numpy())
    if set(scores.index) != set(reference.index):
        sys.exit("the two tables hold different cells")
    area = ours.obs.set_index("instance_id")["area_px"]
    gap = (scores - reference.reindex(scores.index)).abs()
    rows = []
    for kind, (first, last) in ranges.items():
        mine = gap.loc[(gap.index >= first) & (gap.index <= last)]
        rows.append(
            {
                "cells": kind,
                "precision": precision,
                "n": len(mine),
                "median area px": float(area.reindex(mine.index).median()),
                "largest": float(mine.max()),
                "mean": float(mine.mean()),
                "spread of scores": float(reference.reindex(mine.index).std()),
            }
        )
    return rows


if __name__ == "__main__":
    main()
