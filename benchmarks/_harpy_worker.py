"""Runs where harpy is installed: one ``harpy.tb.allocate_intensity`` per line of standard input.

Started by ``integrated_expression.py``; imports nothing of this project. The answer to
each line is a JSON line with the seconds it took and where the means lie. Importing
and opening the store stay outside the clock, and nothing is written to the store.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import dask
import harpy
import spatialdata as sd


def main() -> None:
    """Open the store, then compute once per line until standard input closes."""
    store, threads, output = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    warnings.filterwarnings("ignore")
    dask.config.set(scheduler="threads", num_workers=threads)
    answers, sys.stdout = sys.stdout, sys.stderr
    opened = sd.read_zarr(store)
    about = {"tool": f"harpy {version('harpy-analysis')} allocate_intensity", "threads": threads}
    print(json.dumps(about), file=answers, flush=True)
    for _ in sys.stdin:
        # not backed by the store: the table stays in memory, as on the other side
        sdata = sd.SpatialData(images=dict(opened.images), labels=dict(opened.labels))
        with contextlib.redirect_stdout(sys.stderr):
            start = time.perf_counter()
            sdata = harpy.tb.allocate_intensity(
                sdata,
                image_name="image",
                labels_name="labels",
                output_table_name="table",
                instance_key="instance_id",
            )
            took = time.perf_counter() - start
        table = sdata["table"]
        frame = table.to_df().set_axis(table.obs["instance_id"].astype(int).to_numpy())
        frame.to_csv(output)
        print(json.dumps({"seconds": took, "table": str(output)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
