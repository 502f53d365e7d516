"""Mean intensity per cell with other packages on the same zarr store; means are compared before the clock."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr
from io import StringIO
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import spatialdata as sd
import squidpy as sq

import nimbus_sd as nb
from _common import seconds, store_spatialdata

AGGREGATE_TARGET = 20
logging.getLogger("spatialdata._logging").setLevel(logging.WARNING)  # squidpy reports its tiles there
_OURS = "nb.pp.integrated_expression"


def compare(folder: Path, image: np.ndarray, labels: np.ndarray, args: argparse.Namespace) -> list[dict]:
    """Write a store, let every tool compute the means, then time them in turns."""
    store_spatialdata(folder / "field.zarr", image, labels, chunk=min(args.chunk, image.shape[-1]))
    sdata = sd.read_zarr(folder / "field.zarr")
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(scheduler="threads", num_workers=args.threads))
        tools = {
            _OURS: lambda: _ours(sdata, args.threads),
            "spatialdata.aggregate": lambda: _aggregate(sdata),
            "squidpy calculate_image_features": lambda: _squidpy(sdata, args.threads),
        }
        if args.harpy_python:
            name, call = _harpy(stack, args.harpy_python, folder, args.threads)
            tools[name] = call
        return _rows(tools, _exact(image, labels), args.repeats)


def _rows(tools: dict[str, Callable], exact: np.ndarray, repeats: int) -> list[dict]:
    gaps = {name: _gap(name, call()[1], exact) for name, call in tools.items()}
    rounds = [{name: call()[0] for name, call in tools.items()} for _ in range(repeats)]
    best = {name: min(r[name] for r in rounds) for name in tools}
    return [
        {
            "": name,
            "s": best[name],
            "times our time": best[name] / best[_OURS],
            "target": f"≥ {AGGREGATE_TARGET}" if name == "spatialdata.aggregate" else "",
            "largest relative difference": gaps[name],
        }
        for name in tools
    ]


def _exact(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Means ``(n, c)`` by the shortest way there is: ids must be 1..n."""
    flat = labels.ravel()
    count = np.bincount(flat)
    return np.stack([np.bincount(flat, weights=plane.ravel()) / count for plane in image], axis=1)[1:]


def _gap(name: str, frame: pd.DataFrame, exact: np.ndarray) -> float:
    """Largest relative difference of the means; a tool that gives other cells or means is not timed."""
    found = frame.sort_index()
    if found.index.to_list() != list(range(1, len(exact) + 1)):
        sys.exit(f"{name} gives {len(found)} cells, there are {len(exact)}")
    gap = float((np.abs(found.to_numpy() - exact) / np.maximum(exact, 1)).max())
    if gap > 1e-4:
        sys.exit(f"{name}: means differ by {gap:.3g}, so its time says nothing")
    return gap


def _timed(function: Callable[[], object], frame: Callable[[], pd.DataFrame]) -> tuple[float, pd.DataFrame]:
    return seconds(function), frame()


def _ours(sdata: sd.SpatialData, threads: int) -> tuple[float, pd.DataFrame]:
    def run() -> None:
        nb.pp.integrated_expression(sdata, table="ours", n_threads=threads, overwrite=True, progress=False)

    def frame() -> pd.DataFrame:
        table = sdata["ours"]
        return table.to_df().set_axis(table.obs["instance_id"].to_numpy())

    return _timed(run, frame)


def _aggregate(sdata: sd.SpatialData) -> tuple[float, pd.DataFrame]:
    out = {}

    def run() -> None:
        # a pair of elements that the object holds, so that it annotates them as a user's call would
        out["sdata"] = sdata.aggregate(
            values="image", by="labels", agg_func="mean", table_name="theirs", deepcopy=False
        )

    def frame() -> pd.DataFrame:
        table = out["sdata"]["theirs"]
        means = table.to_df().set_axis(table.obs["instance_id"].to_numpy())
        return means.loc[means.index > 0]

    return _timed(run, frame)


def _squidpy(sdata: sd.SpatialData, threads: int) -> tuple[float, pd.DataFrame]:
    out = {}

    def run() -> None:
        with redirect_stderr(StringIO()):  # a progress bar per call
            out["table"] = sq.experimental.im.calculate_image_features(
                sdata,
                image_key="image",
                labels_key="labels",
                features=["skimage:intensity:intensity_mean"],
                n_jobs=threads,
                inplace=False,
            )

    def frame() -> pd.DataFrame:
        table = out["table"]
        names = [next(v for v in table.var_names if v.endswith(c)) for c in sdata["image"].c.values]
        ids = table.obs["label_id"] if "label_id" in table.obs else table.obs["instance_id"]
        return table.to_df()[names].set_axis(ids.astype(int).to_numpy())

    return _timed(run, frame)


def _harpy(stack: ExitStack, python: Path, folder: Path, threads: int) -> tuple[str, Callable]:
    """Start harpy in its own environment; calling the second value runs it once."""
    worker = Path(__file__).with_name("_harpy_worker.py")
    log = stack.enter_context((folder / "harpy.log").open("w+"))
    process = stack.enter_context(
        subprocess.Popen(
            [python, "-I", worker, folder / "field.zarr", str(threads), folder / "harpy.csv"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    )

    def answer() -> dict:
        line = process.stdout.readline()
        if not line:
            log.seek(0)
            sys.exit(f"harpy stopped:\n{log.read()[-3000:]}")
        return json.loads(line)

    def run() -> tuple[float, pd.DataFrame]:
        process.stdin.write("\n")
        process.stdin.flush()
        found = answer()
        return found["seconds"], pd.read_csv(found["table"], index_col=0)

    about = answer()
    stack.callback(process.stdin.close)
    return about["tool"], run
