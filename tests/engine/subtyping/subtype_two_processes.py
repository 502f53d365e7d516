"""Run by test_subtype_train_loop: the same training in two processes that lightning starts."""

import sys
from pathlib import Path

import torch
from test_subtype_train_loop import QUIET, TINY, data, smooth

from nimbus_sd.engine.subtyping.train_lightning import fit_subtyper_lightning

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    config = smooth(TINY)
    result = fit_subtyper_lightning(
        data(config=config), config, out=folder / "run", devices=2, strategy="ddp", stop_at=4, **QUIET
    )
    # only the main process looks and keeps the best weights; the other returns its last
    last = torch.load(folder / "run" / "last.pt", weights_only=True)["net"] if result.main else None
    weights = result.net.state_dict() if last is None else last
    torch.save((weights, dict(result.metrics)), folder / f"rank{int(not result.main)}")
