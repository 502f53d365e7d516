"""Run by test_train_loop: the same training in two processes that lightning starts."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from test_train_loop import QUIET, TINY, cells, data

from nimbus_sd.engine.embedding.probe import Probe
from nimbus_sd.engine.embedding.train_lightning import fit_embedding_lightning

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    result = fit_embedding_lightning(
        data(probe=Probe(cells(20)[0])),
        replace(TINY, every=1),
        out=folder / "run",
        devices=2,
        strategy="ddp",
        stop_at=4,
        **QUIET,
    )
    weights = {k: v for k, v in result.net.state_dict().items() if "running" not in k}
    torch.save((weights, result.metrics), folder / f"rank{int(not result.main)}")
