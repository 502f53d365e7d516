"""From scores to cell types: one clustering on integrated expression and on scores, against silver types.

    python benchmarks/phenotypes.py --data FOLDER [--model NAME] [--scores FOLDER] [--channels lineage|all]

FOLDER holds ``mibi_breast_dcis`` (see dcis.py). Per seed and kind of values: a self-organising map of 225
nodes over all cells, its nodes grouped into the same number of metaclusters, each metacluster named after the
commonest silver type among its cells in the fields at even places of the sorted list; measured in the other
fields, over the cells whose type could be carried over both ways. "ARI" compares metaclusters with types (no
names needed), "ARI named" and macro-F1 compare the names given. Macro-F1 is the mean over all types of the
measured fields: a type that no metacluster is named after counts 0. The silver types themselves were made
from intensities of the same cells, which favours integrated expression.

Integrated expression comes in two forms: divided by the marker's 99.99th percentile of pixels (as the
network's input is), and by its own 99.9th percentile over cells, clipped at 1 (as is customary before
clustering). The latter and the scores are also clustered as z-scores. With ``--scores``, the table is kept in
that folder and used again by the next run.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, f1_score

import nimbus_sd as nb
from dcis import MPP, load_truth

COLUMNS = ["ARI", "ARI named", "macro-F1", "types named"]


def score_table(root: Path, model: str, folder: Path | None) -> ad.AnnData:
    """Predict, or read what an earlier run kept."""
    kept = None if folder is None else folder / f"dcis_{Path(model).name}.h5ad"
    if kept is not None and kept.is_file():
        print(f"scores from {kept}")
        return ad.read_h5ad(kept)
    start = time.perf_counter()
    sdata = nb.io.read_fovs(root / "image_data", labels=root / "segmentation", mpp=MPP)
    nb.tl.predict(sdata, model=model, progress=False)
    print(f"scored {sdata['nimbus'].n_obs} cells in {time.perf_counter() - start:.0f} s")
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        sdata["nimbus"].write_h5ad(kept)
    return sdata["nimbus"]


def kinds_of_values(adata: ad.AnnData, channels: list[str]) -> dict[str, ad.AnnData]:
    """One table per kind of values to cluster."""
    expression = adata.to_df("integrated_expression")[channels]
    by_cells = (expression / expression.quantile(0.999)).clip(0, 1)
    frames = {
        "integrated expression / pixels' 99.99 %": expression / adata.var.loc[channels, "scale"],
        "integrated expression / cells' 99.9 %": by_cells,
        "scores": adata.to_df()[channels],
    }
    for name in ("integrated expression / cells' 99.9 %", "scores"):
        frames[f"{name}, z-scores"] = (frames[name] - frames[name].mean()) / frames[name].std()
    obs = adata.obs[[]]
    return {name: ad.AnnData(frame.astype(np.float32), obs=obs) for name, frame in frames.items()}


def measure(clusters: pd.Series, truth: pd.DataFrame) -> list[float]:
    """Name clusters in the fields at even places, compare in the others; see `COLUMNS`."""
    known = truth.sure & truth.cell_type.notna()
    choosing = truth.fov.isin(sorted(truth.fov.unique())[0::2])
    a, b = known & choosing, known & ~choosing
    counts = pd.crosstab(clusters[a], truth.cell_type[a])
    named = clusters.astype(str).map(counts.idxmax(axis=1).rename(index=str)).fillna("unnamed")
    types = sorted(truth.cell_type[b].unique())
    real, given = truth.cell_type[b].astype(str), named[b]
    return [
        adjusted_rand_score(real, clusters[b]),
        adjusted_rand_score(real, given),
        f1_score(real, given, labels=types, average="macro", zero_division=0),
        len(set(given) & set(types)),
    ]


def main() -> None:
    """Cluster each kind with each seed and print the table."""
    default = os.environ.get("NIMBUS_SD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--model", default="nimbus-sd-s")
    parser.add_argument("--scores", type=Path, help="folder that keeps the table of scores between runs")
    parser.add_argument("--channels", choices=("lineage", "all"), default="lineage")
    parser.add_argument("--nodes", type=int, default=225)
    parser.add_argument("--metaclusters", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--linkage", choices=("average", "ward", "complete"), default="ward")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    root = args.data / "mibi_breast_dcis"
    adata = score_table(root, args.model, args.scores)
    truth = load_truth(root, adata)
    lineage = list(pd.read_csv(root / "assignment_matrix.csv").set_index("cell_type").columns)
    channels = lineage if args.channels == "lineage" else list(adata.var_names)
    n_types = truth.cell_type[truth.sure].nunique()
    print(f"{adata.n_obs} cells, {len(channels)} markers, {n_types} silver types; mean ± sd over seeds")
    for n in args.metaclusters:
        print(f"\n{args.nodes} nodes -> {n} metaclusters ({args.linkage} linkage)")
        print(f"{'values':<50}" + "".join(f"{c:>16}" for c in COLUMNS))
        for kind, table in kinds_of_values(adata, channels).items():
            rows = []
            for seed in range(args.seeds):
                nb.tl.flowsom(table, n_nodes=args.nodes, n_metaclusters=n, linkage=args.linkage, seed=seed)
                rows.append(measure(table.obs["metacluster"], truth))
            mean, sd = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=min(1, args.seeds - 1))
            print(f"{kind:<50}" + "".join(f"{m:>8.3f} ± {s:.3f}" for m, s in zip(mean, sd, strict=True)))


if __name__ == "__main__":
    main()
