"""Does noise-robust training help when silver labels are wrong? ``python benchmarks/noise_robust.py``.

For every rate of wrong labels and every seed one network is trained on all labels
(first stage), and goes on twice from there for the same steps at the same rates: on
all labels (naive), and with the noise-robust selection (robust). Labels are wrong the
way clustering is: whole cell types of a field got the labels of another type, and
single cells are flipped, some markers more often than others. F1 is measured on the
truth of held-out simulated fields at the threshold 0.5. Wrong labels push scores away
from it, which the selection undoes and another threshold would too: so F1 at the best
threshold and average precision stand beside it. Done cases are kept in ``--out`` and not
repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from _common import machine, table
from nimbus_sd.engine.training.array_source import ArraySource
from nimbus_sd.engine.training.config import SelectionConfig, TrainConfig
from nimbus_sd.engine.training.loop import fit
from nimbus_sd.engine.training.silver_noise import SilverNoise
from nimbus_sd.engine.training.simulated import SimulatedDataset, simulated_dataset
from nimbus_sd.engine.training.sources import ConcatSource
from nimbus_sd.engine.training.validate import CellScores, average_precision, score_cells, validate

PLATFORMS = ("ions_denoised", "fluorescence16")
# every cell's loss is at most the largest of its batch: nothing is left out
EVERYTHING = SelectionConfig(ema=1.0, quantile_first=1.0, quantile_last=1.0)


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmark-noise-robust"))
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="0 was used to choose settings"
    )
    parser.add_argument("--steps", type=int, default=240, help="of the first stage")
    parser.add_argument("--robust-steps", type=int, default=160, help="of either continuation")
    parser.add_argument("--fields", type=int, default=12, help="training fields of each of the two datasets")
    parser.add_argument("--side", type=int, default=128, help="px per side of a field")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def datasets(seed: int, given: argparse.Namespace) -> list[SimulatedDataset]:
    """Two experiments, whose last fields are held out."""
    held = max(given.fields // 4, 1)
    splits = ["train"] * given.fields + ["test"] * held
    return [
        simulated_dataset(
            10 * seed + k,
            n_fields=len(splits),
            side=given.side,
            markers=("CD3", "CD20", "CD68", "PanCK", "SMA", "CD31"),
            platform=platform,
            splits=splits,
            dataset=platform,
        )
        for k, platform in enumerate(PLATFORMS)
    ]


def case(rate: float, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """F1 on truth after the first stage and after either continuation."""
    began = time.perf_counter()
    folder = given.out / f"rate{rate:g}-seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    made = datasets(seed, given)
    silver = [d.silver(SilverNoise(rate=rate, seed=seed)) for d in made]
    train = ConcatSource([s.split("train") for s in silver])
    test = ConcatSource([d.truth.split("test") for d in made])
    config = replace(
        TrainConfig.small(),
        architecture={"depth": 4, "width": given.width},
        steps=given.steps,
        robust_steps=given.robust_steps,
        batch=given.batch,
        crop=min(128, given.side),
        every=given.steps + given.robust_steps,
        seed=seed,
    )
    schedule = replace(config.selection, quantile_steps=max(given.robust_steps // 2, 1))
    running = {"device": given.device, "precision": "auto", "progress": False}
    first = fit(train, None, config, out=folder / "naive", stop_at=given.steps, **running)
    nets = {"first": first.net}
    for name, selection in (("robust", schedule), ("naive", EVERYTHING)):
        going_on = replace(first.config, selection=selection)
        saved = torch.load(folder / "naive" / "last.pt", weights_only=True)
        (folder / name).mkdir(exist_ok=True)
        # the first stage knows no selection: both go on from one checkpoint
        torch.save({**saved, "config": going_on.to_dict()}, folder / name / "last.pt")
        nets[name] = fit(train, None, going_on, out=folder / name, **running).net
    cpu = {"device": torch.device("cpu"), "precision": torch.float32}
    all_tiles = replace(config, validation_tiles=len(test))
    found = {}
    for name, net in nets.items():
        found[name] = validate(net, test, all_tiles, **cpu)["f1"]
        cells = score_cells(net, test, all_tiles, **cpu)
        found[f"{name} AP"], found[f"{name} best"] = average_precision(cells), best_f1(cells)
    found["silver"] = float(np.mean([_f1(d.truth, s) for d, s in zip(made, silver, strict=True)]))
    shutil.rmtree(folder)
    return found | {"seconds": time.perf_counter() - began}


def best_f1(cells: CellScores) -> float:
    """F1 at the best single threshold, chosen with the truth in hand."""
    hits = torch.cumsum(cells.target[torch.argsort(cells.score, descending=True)], 0)
    called = torch.arange(1, len(hits) + 1)
    return float((2 * hits / (called + cells.target.sum())).max())


def _f1(truth: ArraySource, silver: ArraySource) -> float:
    """F1 of the labels themselves."""
    true, told = truth.targets == 1, silver.targets == 1
    return 2 * float((true & told).sum()) / max(float(true.sum() + told.sum()), 1.0)


def main() -> None:
    """Run what is missing and print the table."""
    given = options()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "results.json"
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "rates", "seeds", "device")}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"settings": settings}
    if kept["settings"] != settings:
        msg = f"{path} holds results of {kept['settings']}; give another --out"
        raise SystemExit(msg)
    print(machine())
    for rate in given.rates:
        for seed in given.seeds:
            key = f"{rate:g}/{seed}"
            if key not in kept:
                kept[key] = case(rate, seed, given)
                path.write_text(json.dumps(kept, indent=1), encoding="utf-8")
                print(key, {k: round(v, 3) for k, v in kept[key].items()}, flush=True)
    rows = []
    for rate in given.rates:
        found = [kept[f"{rate:g}/{seed}"] for seed in given.seeds]
        column = {k: np.array([f[k] for f in found]) for k in found[0]}
        rows.append(
            {
                "wrong labels": f"{rate:.0%}",
                **{name: _spread(column[name]) for name in ("silver", "first", "naive", "robust")},
                "gain": _spread(column["robust"] - column["naive"]),
                "seconds": float(column["seconds"].sum()),
            }
        )
    what = f"of held-out fields against the truth, mean and standard deviation of {len(given.seeds)} seeds"
    table(f"F1 at the threshold 0.5 {what}", rows)
    for title, kind in (("F1 at the best threshold", "best"), ("average precision", "AP")):
        table(f"{title} {what}", [_compare(kept, rate, kind, given.seeds) for rate in given.rates])


def _compare(kept: dict, rate: float, kind: str, seeds: list[int]) -> dict[str, str]:
    """One row of a measure that no threshold changes."""
    column = {
        name: np.array([kept[f"{rate:g}/{seed}"][f"{name} {kind}"] for seed in seeds])
        for name in ("first", "naive", "robust")
    }
    gain = column["robust"] - column["naive"]
    return {
        "wrong labels": f"{rate:.0%}",
        **{k: _spread(v) for k, v in column.items()},
        "gain": _spread(gain),
    }


def _spread(values: np.ndarray) -> str:
    sd = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():+.3f} ± {sd:.3f}" if values.min() < 0 else f"{values.mean():.3f} ± {sd:.3f}"


if __name__ == "__main__":
    main()
