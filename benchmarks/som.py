"""``nb.tl.flowsom`` against the batch estimator of the ``flowsom`` package, and its memory.

The estimator is given the same float32 matrix, grid and seed, and does what it does
when fitted: train the map and assign every cell. The function does that, checks the
values, assigns, sums per node and groups the nodes. Both ran once before on a little
data, so that nothing is compiled while the clock runs. (A script named as the package
would be imported in its place.)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from flowsom.models.batch import BatchSOMEstimator

import nimbus_sd as nb
from _common import machine, side_by_side, table

TARGET = 1.1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--markers", type=int, default=22)
    parser.add_argument("--nodes", type=int, default=225)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--many", type=int, default=5_000_000, help="cells of the memory test; 0 leaves it out"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(peak(args.many, args.markers, args.nodes)))
        return
    print(machine())
    speed(args)
    if args.many:
        memory(args)


def speed(args: argparse.Namespace) -> None:
    """Ratio of times."""
    side = int(args.nodes**0.5)
    for n in (4 * args.nodes, args.cells):
        adata = scores(n, args.markers)
        best = side_by_side(
            {
                "estimator": lambda adata=adata: BatchSOMEstimator(xdim=side, ydim=side, seed=0).fit(adata.X),
                "flowsom": lambda adata=adata: nb.tl.flowsom(adata, n_nodes=side**2),
            },
            repeats=args.repeats if n == args.cells else 1,
        )
    row = {"estimator s": best["estimator"], "nb.tl.flowsom s": best["flowsom"]}
    row["ratio"] = best["flowsom"] / best["estimator"]
    table(
        f"{args.cells} cells x {args.markers} markers, {side**2} nodes (target: ratio ≤ {TARGET})",
        [row],
    )


def memory(args: argparse.Namespace) -> None:
    """Resident memory that the call adds at its peak, in a process of its own."""
    done = subprocess.run(
        [sys.executable, Path(__file__), *sys.argv[1:], "--child"], check=True, capture_output=True, text=True
    )
    row = json.loads(done.stdout.splitlines()[-1])
    table(f"{args.many} cells x {args.markers} markers (target: over the table ≤ 1)", [row])


def peak(n: int, n_markers: int, n_nodes: int) -> dict[str, float]:
    """What the call adds to this process, MiB, beside the table's X."""
    nb.tl.flowsom(scores(2_000, n_markers), n_nodes=n_nodes)  # imports and compiled code don't count
    adata = scores(n, n_markers)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    start = time.perf_counter()
    nb.tl.flowsom(adata, n_nodes=n_nodes)
    seconds = time.perf_counter() - start
    added, size = resident("VmHWM") - before, adata.X.nbytes / 2**20
    return {"X MiB": size, "the call adds MiB": added, "over the table": added / size, "s": seconds}


def resident(what: str) -> float:
    """A figure of this process in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def scores(n: int, n_markers: int) -> ad.AnnData:
    """Scores of cells of 30 types: near 0 or 1, by type and marker, some in between."""
    rng = np.random.default_rng(0)
    high = rng.random((30, n_markers), dtype=np.float32) < 0.3
    values = np.empty((n, n_markers), np.float32)
    for start in range(0, n, 100_000):  # so that making it takes no more than holding it
        block = values[start : start + 100_000]
        block[:] = rng.beta(1, 8, block.shape)
        flip = high[rng.integers(0, 30, len(block))]
        block[flip] = 1 - block[flip]
    return ad.AnnData(values, obs=pd.DataFrame(index=pd.RangeIndex(n).astype(str)))


if __name__ == "__main__":
    main()
