"""Run by test_faults: kill -9 prediction at random moments, resume, and report what the table became.

A program of its own, so that it can fork before torch or zarr have started threads.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import spatialdata as sd
import torch

import nimbus_sd as nb
from nimbus_sd.models import loading
from nimbus_sd.tl import predict


def in_child(function):
    """Fork; return the child's pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return pid


def score(store, model):
    torch.set_num_threads(1)
    sdata = sd.read_zarr(store)
    predict(
        sdata,
        model=loading.load(model),
        tile=32,
        precision="float32",
        device="cpu",
        write=True,
        overwrite=True,
        progress=False,
    )


def scores(store, out):
    np.save(out, sd.read_zarr(store)["nimbus"].X)


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def load_table(store, folder):
    """Scores read in a child, so that this process never starts zarr's threads; None without a table."""
    out = folder / "scores.npy"
    out.unlink(missing_ok=True)
    wait(in_child(lambda: scores(store, out)))
    return np.load(out) if out.exists() else None


def main(store, model, folder, n_seeds):
    start = time.perf_counter()
    assert wait(in_child(lambda: score(store, model))) == 0
    took = time.perf_counter() - start
    expected = load_table(store, folder)
    report = []
    for seed in range(n_seeds):
        runs = store.parent / f".{store.name}.nimbus-runs"
        pid = in_child(lambda: score(store, model))
        time.sleep(np.random.default_rng(seed).uniform(0.05, 1.0) * took)
        os.kill(pid, signal.SIGKILL)
        killed = wait(pid) == -signal.SIGKILL
        left = [p.stat().st_size for p in runs.glob("*/blocks")] if runs.exists() else []
        between = load_table(store, folder)
        code = wait(in_child(lambda: score(store, model)))
        after = load_table(store, folder)
        report.append(
            {
                "seed": seed,
                "killed": killed,
                "journal": left,
                "old_table_whole": bool(np.array_equal(between, expected)),
                "code": code,
                "equal": bool(np.allclose(after, expected, atol=1e-6)),
                "cleaned": not runs.exists(),
            }
        )
    print(json.dumps(report))


if __name__ == "__main__":
    assert nb.__name__
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
