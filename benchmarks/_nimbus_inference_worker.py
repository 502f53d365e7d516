"""Runs inside the environment of Nimbus-Inference: one prediction per line on standard input.

Started by ``nimbus_inference.py``; imports nothing of this project. Each line read
makes one call of the tool's own ``predict_fovs`` on the same files; the answer is a
JSON line with the seconds it took and where the cell table lies. Importing, loading
weights and reading the normalisation stay outside the clock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from nimbus_inference.nimbus import Nimbus, prep_naming_convention
from nimbus_inference.unet import UNet
from nimbus_inference.utils import MultiplexDataset


class Local(Nimbus):
    """The tool with weights from a given file: its own loader reads its package folder or the hub."""

    weights = ""

    def load_checkpoint(self, padding: str = "reflect") -> None:
        """Load `weights`; called by the tool's constructor."""
        self.model = UNet(num_classes=1, padding=padding)
        self.model.load_state_dict(torch.load(self.weights, weights_only=True))
        self.model.to(self.device).eval()


def main() -> None:
    """Prepare, then predict once per line until standard input closes."""
    folder, side = Path(sys.argv[1]), int(sys.argv[2])
    answers, sys.stdout = sys.stdout, sys.stderr
    logging.disable(logging.WARNING)
    output = folder / "nimbus_inference"
    output.mkdir()
    # the same scale on both sides: the tool takes one that lies in its output folder
    (output / "normalization_dict.json").write_text((folder / "scale.json").read_text())
    dataset = MultiplexDataset(
        fov_paths=[str(folder / "image_data" / "fov0")],
        segmentation_naming_convention=prep_naming_convention(str(folder / "segmentation")),
        suffix=".tiff",
        silent=True,
        magnification=10,
        output_dir=str(output),
    )
    dataset.prepare_normalization_dict()
    Local.weights = str(folder / "weights.pt")
    tool = Local(
        dataset=dataset,
        output_dir=str(output),
        save_predictions=False,
        test_time_aug=False,
        model_magnification=10,
        input_shape=[side, side],
        device="cpu",
    )
    about = {
        "tool": f"Nimbus-Inference {version('Nimbus-Inference')}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(about), file=answers, flush=True)
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            start = time.perf_counter()
            tool.predict_fovs()
            took = time.perf_counter() - start
        answer = {"seconds": took, "table": str(output / "nimbus_cell_table.csv")}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
