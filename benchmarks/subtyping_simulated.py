"""Lymphocyte sub-types on simulated H&E, taught by fluorescence of the same sections, on patients never seen.

    python benchmarks/subtyping_simulated.py [--patients 41] [--side 1024] [--seeds 3] [--minutes 20]
        [--backbone convnext-atto] [--compare-weights]

Each patient has one section of ``side`` px at 0.325 µm (nb.datasets.simulated_sections): about 900
cells, a fifth of them leukocytes. Thresholds are suggested and not edited, labels gated and curated, patients
split 25 : 7 : 9, and the network trained from random weights by ``config="small"`` until the CPU
minutes are over. Figures are those of the cells of test patients as they come, against the truth that
the simulator drew (not the gated labels). With ``--compare-weights`` every seed is trained
with and without weights for rare positive cells.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

import nimbus_sd as nb


def labelled(patients: int, side: int, seed: int) -> tuple[SpatialData, pd.DataFrame]:
    """Sections with gated, curated and sampled cells, and how labels agree with the truth."""
    sdata = nb.datasets.simulated_sections(n_patients=patients, shape=(side, side), seed=seed)
    table = sdata["table"]
    nb.pp.gate(table, nb.pp.suggest_thresholds(table))
    nb.pp.curate_hierarchy(table)
    nb.pp.sample_cells(table, seed=seed)
    truth = sdata["truth"][table.obs_names]
    rows = {}
    for marker in truth.var_names:
        label = table[:, marker].layers["gated"].ravel()
        true = np.asarray(truth[:, marker].X).ravel()
        both = np.isfinite(label) & np.isfinite(true)
        rows[marker] = {"defined": np.isfinite(label).mean(), "agreement": (label == true)[both].mean()}
    return sdata, pd.DataFrame(rows).T


def cpu() -> float:
    """Seconds of CPU time that this process has taken, all threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measured(sdata: SpatialData, model: object) -> pd.DataFrame:
    """Figures by marker on test patients."""
    table = sdata["table"]
    sections = table.obs.loc[(table.obs["split"] == "test"), "section"].unique()
    nb.tl.predict_subtypes(
        sdata,
        model=model,
        centers={f"{s}_labels": f"{s}_he" for s in sections},
        overwrite=True,
        progress=False,
    )
    found: AnnData = sdata["subtypes"]
    truth = sdata["truth"][found.obs_names].copy()
    found.obs["patient"] = truth.obs["patient"].to_numpy()
    return nb.tl.evaluate(found, truth, {"he": "X"}, truth_layer="X", by="marker", resample="patient")


def main() -> None:
    """Simulate, label, train, predict, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=41)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20, help="CPU minutes of training")
    parser.add_argument("--epochs", type=int, help="instead of what fills the minutes")
    parser.add_argument("--backbone", default="convnext-atto")
    parser.add_argument("--compare-weights", action="store_true")
    parser.add_argument("--out", type=Path, help="folder to keep the networks in")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    frames = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        began = time.monotonic()
        sdata, agreement = labelled(args.patients, args.side, seed)
        print(f"\nseed {seed}: simulated in {time.monotonic() - began:.0f} s; gated labels and the truth:")
        print(agreement.round(4).to_string(), flush=True)
        for weighted in (True, False) if args.compare_weights else (True,):
            common = {"backbone": args.backbone, "weighted": weighted, "seed": seed, "config": "small"}
            epochs = args.epochs or _epochs(sdata, args.minutes, common)
            start = cpu()
            name = f"seed{seed}-{'weighted' if weighted else 'plain'}"
            model = nb.tl.train_subtyper(
                sdata,
                table="table",
                epochs=epochs,
                out=None if args.out is None else args.out / name,
                progress=False,
                **common,
            )
            minutes = (cpu() - start) / 60
            frame = measured(sdata, model).assign(seed=seed, weighted=weighted, minutes=minutes)
            frames.append(frame)
            print(f"weighted={weighted}, {epochs} epochs, {minutes:.1f} CPU minutes")
            print(frame[["marker", "n_positive", *SHOWN]].round(3).to_string(index=False), flush=True)
    every = pd.concat(frames)
    print(f"\nmeans of {args.seeds} seeds")
    print(every.groupby(["weighted", "marker"], sort=False)[SHOWN].mean().round(3).to_string())


SHOWN = ["auroc", "balanced_accuracy", "recall", "specificity"]


def _epochs(sdata: SpatialData, minutes: float, common: dict) -> int:
    """Epochs that take so many CPU minutes, from the time of the first."""
    start = cpu()
    nb.tl.train_subtyper(sdata, table="table", epochs=1, progress=False, **common)
    return max(int(minutes * 60 / (cpu() - start)), 1)


if __name__ == "__main__":
    main()
