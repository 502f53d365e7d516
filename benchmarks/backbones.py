"""Does another backbone, resolution or further input help? ``python benchmarks/backbones.py``.

A small rerun of the paper's Extended Data 1e-g on simulated fields with known truth:
every variant is trained from scratch on the same fields with the same steps, and F1 is
measured on fields that were held out. Networks are scaled down to a similar number of
parameters; nothing is pretrained. Done cases are kept in ``--out`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nimbus_sd as nb
from _common import machine, table
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.loop import fit
from nimbus_sd.engine.training.validate import validate

NUCLEI, MEMBRANE = "HH3", "ECAD"
MARKERS = ("CD3", "CD20", "CD68", "PanCK", "SMA", "CD31")
UNET = {"kind": "unet", "depth": 5, "width": 12}


@dataclass(frozen=True)
class Variant:
    """One row of the table: what differs from the residual U-Net at 1 µm with two planes."""

    group: str
    name: str
    architecture: Mapping[str, Any] = field(default_factory=lambda: dict(UNET))
    extra: tuple[str, ...] = ()
    mpp: float = 1.0


VARIANTS = (
    Variant("reference", "residual U-Net"),
    Variant("backbone", "ResNet-50", {"kind": "resnet", "layers": 50, "width": 12}),
    Variant("backbone", "ResNet-101", {"kind": "resnet", "layers": 101, "width": 8}),
    Variant("backbone", "ResNet-152", {"kind": "resnet", "layers": 152, "width": 8}),
    Variant("backbone", "EfficientNetV2-S", {"kind": "efficientnet", "size": "s", "width": 0.25}),
    Variant("backbone", "EfficientNetV2-M", {"kind": "efficientnet", "size": "m", "width": 0.17}),
    Variant("backbone", "EfficientNetV2-L", {"kind": "efficientnet", "size": "l", "width": 0.12}),
    Variant("input", "with nuclei", extra=(NUCLEI,)),
    Variant("input", "with nuclei and membrane", extra=(NUCLEI, MEMBRANE)),
    Variant("resolution", "0.5 µm per px", mpp=0.5),
    Variant("resolution", "2 µm per px", mpp=2.0),
)


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmark-backbones"))
    parser.add_argument("--only", nargs="+", help="names of variants", default=[v.name for v in VARIANTS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fields", type=int, default=16, help="a quarter of them is held out")
    parser.add_argument("--side", type=int, default=256, help="µm per side of a field")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=128, help="µm per side of the crops")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def tiles(variant: Variant, seed: int, given: argparse.Namespace) -> nb.pp.TileStore:
    """Training tiles of the seed's fields at the variant's resolution, kept for the other variants."""
    planes = "-".join(variant.extra) or "none"
    path = given.out / "tiles" / f"seed{seed}-{variant.mpp:g}um-{planes}.zarr"
    side = int(given.side / 0.5)
    sdata = nb.datasets.simulated_tissue(
        n_fovs=given.fields,
        shape=(side, side),
        mpp=0.5,
        channels=[*MARKERS, NUCLEI, MEMBRANE],
        platform="fluorescence16",
        seed=seed,
    )
    return nb.pp.training_tiles(
        sdata,
        path,
        labels_layer="X",
        channels=list(MARKERS),
        extra=variant.extra,
        model_mpp=variant.mpp,
        split=(0.75, 0.0, 0.25),
        seed=seed,
        dataset="simulated",
        progress=False,
    )


def case(variant: Variant, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """F1 on the held-out fields, parameters and seconds of training."""
    store = tiles(variant, seed, given)
    crop = min(max(int(given.crop / variant.mpp) // 32 * 32, 64), store.settings.tile // 32 * 32)
    config = replace(
        TrainConfig.small(),
        architecture=dict(variant.architecture),
        steps=given.steps,
        robust_steps=0,
        batch=given.batch,
        crop=crop,
        every=10**6,
        validation_tiles=10**6,
        seed=seed,
    )
    folder = given.out / f"{variant.name.replace(' ', '-')}-seed{seed}"
    began = time.perf_counter()
    done = fit(
        store.split("train"),
        None,
        config,
        out=folder,
        device=given.device,
        precision="auto",
        progress=False,
    )
    seconds = time.perf_counter() - began
    place = {"device": torch.device("cpu"), "precision": torch.float32}
    found = validate(done.net, store.split("test"), done.config, **place)
    shutil.rmtree(folder)
    return {
        "f1": found["f1"],
        "f1 of markers": found["f1_groups"],
        "seconds": seconds,
        "parameters": float(sum(p.numel() for p in done.net.parameters())),
    }


def main() -> None:
    """Run what is missing and print the table."""
    given = options()
    unknown = sorted(set(given.only) - {v.name for v in VARIANTS})
    if unknown:
        msg = f"--only {unknown}; valid: {[v.name for v in VARIANTS]}"
        raise SystemExit(msg)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "results.json"
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "only", "seeds", "device")}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"settings": settings}
    if kept["settings"] != settings:
        msg = f"{path} holds results of {kept['settings']}; give another --out"
        raise SystemExit(msg)
    print(machine())
    rows = []
    for variant in (v for v in VARIANTS if v.name in given.only):
        for seed in range(given.seeds):
            key = f"{variant.name}/{seed}"
            if key not in kept:
                kept[key] = case(variant, seed, given)
                path.write_text(json.dumps(kept, indent=1), encoding="utf-8")
                print(key, {k: round(v, 3) for k, v in kept[key].items()}, flush=True)
        found = [kept[f"{variant.name}/{seed}"] for seed in range(given.seeds)]
        f1 = np.array([f["f1"] for f in found])
        rows.append(
            {
                "variant": variant.name,
                "compares": variant.group,
                "M parameters": found[0]["parameters"] / 1e6,
                "F1": f"{f1.mean():.3f} ± {f1.std(ddof=1) if len(f1) > 1 else 0.0:.3f}",
                "F1 of markers": float(np.mean([f["f1 of markers"] for f in found])),
                "seconds": float(np.mean([f["seconds"] for f in found])),
            }
        )
    table(f"F1 on truth of held-out fields, mean and standard deviation of {given.seeds} seeds", rows)


if __name__ == "__main__":
    main()
