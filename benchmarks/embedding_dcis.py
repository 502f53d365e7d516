"""Embeddings on real images: 26 MIBI fields of breast DCIS, against silver cell types.

    python benchmarks/embedding_dcis.py --data FOLDER [--keep FOLDER] [--seeds 3] [--half final|choose]

FOLDER holds ``mibi_breast_dcis`` (see dcis.py). Trained without labels on 20 fields, measured in the other 6
(of the fields at odd places of the sorted list every other one; with ``--half choose`` at even places, for
choosing anything). "probe": balanced accuracy of a linear classifier that saw the types of the 20 fields.
"rediscovery": all cells clustered as in the paper (PhenoGraph, k = 8), clusters named by majority in the 20
fields, mean share of each type's cells found again in the 6; "grouped": the same for groups of types. Types
with fewer than 10 sure cells in the 6 fields are left out. The silver types were made from mean intensities
of these cells, which favours them. The probe is given values per marker as they are and over their 99.9th
percentile, clipped, square root ("levelled"), and "both" (levelled activations beside the embedding) with
several weights of the latter; what is best in a cross-validation over the 20 fields is measured. With
``--keep`` models and tables stay in that folder and are used again by the next run.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData

import nimbus_sd as nb
from _probe import clustered, levelled, linear_probe, own_rates, rediscovered
from dcis import MPP, load_truth

LEAST = 10
GROUPS = {
    "T cell": ("CD4T", "CD8T", "TCELL"),
    "myeloid": ("APC", "DC", "MACS", "MONO", "MONODC"),
    "fibroblast": ("CAF", "FIBRO_VIMonly", "MYOFIBRO", "NORMFIBRO"),
    "tumour": ("TUMOR_CK5", "TUMOR_ECADCK", "TUMOR_EMT", "TUMOR_LUMINAL"),
}


def grouped(types: np.ndarray) -> np.ndarray:
    """The group of each type; the type itself where it has none."""
    heads = {name: group for group, names in GROUPS.items() for name in names}
    return np.array([heads.get(t, t) for t in types])


def frequent(types: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Types with at least ten cells in the fields held out; the others are unknown."""
    names, counts = np.unique(types[held_out], return_counts=True)
    return np.where(np.isin(types, names[counts >= LEAST]), types, "")


def fields_held_out(names: list[str], half: str) -> list[str]:
    """Six of the sorted fields: every other one of those at even (choose) or odd (final) places."""
    return sorted(names)[1 if half == "final" else 0 :: 4][:6]


def part(sdata: SpatialData, fields: list[str]) -> SpatialData:
    """The object with the images and labels of some fields."""
    return sdata.subset([f"{f}_{what}" for f in fields for what in ("image", "labels")])


def embedded(
    sdata: SpatialData, training: list[str], architecture: str, seed: int, args: argparse.Namespace
) -> ad.AnnData:
    """Train on some fields and embed all, or read what an earlier run kept."""
    name = f"{architecture}_{args.half}_{seed}"
    kept = None if args.keep is None else args.keep / f"{name}.h5ad"
    if kept is not None and kept.is_file():
        return ad.read_h5ad(kept)
    start = time.perf_counter()
    model = nb.tl.train_embedding(
        part(sdata, training),
        architecture=architecture,
        epochs=args.epochs,
        seed=seed,
        out=None if args.keep is None else args.keep / name,
        progress=args.progress,
    )
    trained = time.perf_counter() - start
    nb.tl.embed(sdata, model=model, table=name, progress=args.progress)
    total = time.perf_counter() - start
    print(f"{name}: trained in {trained:.0f} s, embedded in {total - trained:.0f} s", flush=True)
    if kept is not None:
        sdata[name].write_h5ad(kept)
    return sdata[name]


def baselines(sdata: SpatialData, args: argparse.Namespace) -> ad.AnnData:
    """Scores and mean intensities."""
    kept = None if args.keep is None else args.keep / "scores.h5ad"
    if kept is not None and kept.is_file():
        return ad.read_h5ad(kept)
    nb.tl.predict(sdata, progress=args.progress)
    if kept is not None:
        sdata["nimbus"].write_h5ad(kept)
    return sdata["nimbus"]


@dataclass(frozen=True)
class Kind:
    """Values to judge.

    Attributes
    ----------
    forms
        Ways to give them to the probe, see :func:`_probe.linear_probe`.
    clustered
        ``(n, k)`` for clustering.
    """

    forms: list[list[tuple[np.ndarray, float]]]
    clustered: np.ndarray


def plain(values: np.ndarray) -> Kind:
    """Non-negative values per marker: as they are, or levelled."""
    return Kind([[(values, 1.0)], [(levelled(values), 1.0)]], scaled(levelled(values)))


def kinds_of(table: ad.AnnData, name: str) -> dict[str, Kind]:
    """What an embedding gives."""
    embedding, activation = table.obsm["X_nextchannel"], np.asarray(table.X)
    level = levelled(activation)
    both = [[(level, 1.0), (embedding, w)] for w in (0.03, 0.1, 0.3, 1.0)]
    return {
        f"{name} embedding": Kind([[(embedding, 1.0)]], embedding),
        f"{name} activations": plain(activation),
        f"{name} both": Kind(both, np.hstack([scaled(level), 0.3 * scaled(embedding)])),
    }


def scaled(values: np.ndarray) -> np.ndarray:
    """z-scores, for clustering."""
    return (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)


def measure(
    kind: Kind, types: np.ndarray, field: np.ndarray, held_out: np.ndarray, *, seed: int
) -> tuple[list[float], pd.DataFrame]:
    """Probe, rediscovery, grouped rediscovery; and the matrix of the last."""
    probe = linear_probe(kind.forms, frequent(types, held_out), field, held_out)
    clusters = clustered(kind.clustered, seed=seed)
    whole, groups = (
        rediscovered(clusters, t, naming=~held_out, measured=held_out)
        for t in (frequent(types, held_out), grouped(types))
    )
    return [probe, own_rates(whole).mean(), own_rates(groups).mean()], groups


def main() -> None:
    """Train, embed, measure and print the tables."""
    default = os.environ.get("NIMBUS_SD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--keep", type=Path, help="folder for models and tables")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--half", choices=("final", "choose"), default="final")
    parser.add_argument("--epochs", type=int, help="None takes the default of train_embedding")
    parser.add_argument("--architectures", nargs="+", default=["next_channel", "cim"])
    parser.add_argument("--progress", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    root = args.data / "mibi_breast_dcis"
    sdata = nb.io.read_fovs(root / "image_data", labels=root / "segmentation", mpp=MPP)
    base = baselines(sdata, args)
    fields = sorted(name.removesuffix("_labels") for name in sdata.labels)
    held = fields_held_out(fields, args.half)
    training = [f for f in fields if f not in held]
    found: dict[str, list[list[float]]] = {}
    matrices: dict[str, pd.DataFrame] = {}
    types = field = held_out = None
    for seed in range(args.seeds):
        kinds = {
            "mean intensity": plain(np.asarray(base.layers["integrated_expression"])),
            "scores": plain(np.asarray(base.X)),
        }
        for architecture in args.architectures:
            table = embedded(sdata, training, architecture, seed, args)[base.obs_names]
            truth = load_truth(root, table)
            types = truth.cell_type.where(truth.sure).fillna("").to_numpy(str)
            field = truth.fov.to_numpy(str)
            held_out = np.isin(field, held)
            kinds |= kinds_of(table, architecture)
        for name, kind in kinds.items():
            row, matrix = measure(kind, types, field, held_out, seed=seed)
            found.setdefault(name, []).append(row)
            matrices.setdefault(name, matrix)
            print(f"seed {seed}  {name:<28}" + "".join(f"{v:>8.3f}" for v in row), flush=True)
    n = int((types[held_out] != "").sum())
    print(f"\n{len(training)} fields for training, {', '.join(held)} measured: {n} cells with a sure type")
    print(f"{'values':<28}" + "".join(f"{c:>18}" for c in ("probe", "rediscovery", "grouped")))
    for name, rows in found.items():
        mean, sd = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=min(1, len(rows) - 1))
        print(f"{name:<28}" + "".join(f"{m:>10.3f} ± {s:.3f}" for m, s in zip(mean, sd, strict=True)))
    for name in ("mean intensity", "scores", "next_channel both", "cim both"):
        if name in matrices:
            print(f"\n{name}: share (%) of each type (row) found as …, first seed")
            print((100 * matrices[name]).round(0).astype(int).to_string())


if __name__ == "__main__":
    main()
