"""Training where only NumPy, SciPy and torch are installed."""

from __future__ import annotations

import subprocess
import sys


def test_it_trains_where_no_scverse_is_installed(tmp_path):
    code = f"""
import sys
blocked = "anndata spatialdata scanpy squidpy xarray pandas zarr skimage sklearn matplotlib tifffile dask"
blocked += " safetensors tqdm tensorboard kornia lightning rich"
for name in blocked.split():
    sys.modules[name] = None  # any import of it fails
from dataclasses import replace
from pathlib import Path
from nimbus_sd.engine.training.array_write import write_npy
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.loop import fit
from nimbus_sd.engine.training.simulated import SimulatedSource
folder = Path({str(tmp_path)!r})
tiles = write_npy(SimulatedSource(1, side=32, n_channels=2), folder / "tiles")
config = replace(TrainConfig.small(), architecture={{"depth": 2, "width": 2}}, crop=0)
config = replace(config, steps=1, robust_steps=1)
held_out = SimulatedSource(1, seed=5, side=32, n_channels=2)
print(fit(tiles, held_out, config, out=folder / "run", device="cpu").step)
try:
    import nimbus_sd.engine.training.lightning
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.startswith("2\n")
    assert 'pip install -c constraints.txt "nimbus-sd[train]"' in done.stdout
