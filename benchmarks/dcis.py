"""The whole chain on real images: 26 MIBI fields of breast DCIS, against silver labels and counted fractions.

    python benchmarks/dcis.py --data FOLDER [--model NAME] [--out FOLDER]

FOLDER holds ``mibi_breast_dcis`` (Risom et al. 2022, Cell 185:299, by way of spicyWorkflow and FuseSOM):
``image_data/<fov>/<channel>.tif``, ``segmentation/<fov>_whole_cell.tiff``, ``cell_types.csv``,
``assignment_matrix.csv`` and ``tumor_positive_fraction.csv``. Lineage markers: AUROC and F1 over cells whose
type could be carried over both ways, pooled over fields, mean over markers that have both classes; "F1 one"
and "F1 best" choose one threshold, or one per marker, with the labels in hand.
Functional markers: share of tumour cells with score > 0.5 per field (of at least 30) against the authors'
fraction. Fields at even places of the sorted list are for choosing anything, the others for the final figure.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.metrics import f1_score, roc_auc_score

import nimbus_sd as nb

MPP = 0.488
FUNCTIONAL = ["ER", "AR", "HER2", "Ki67", "pS6", "GLUT1", "COX2", "CD44", "PDL1", "IDO1", "HIF1a"]


def load_truth(root: Path, adata: AnnData) -> pd.DataFrame:
    """Cell types of the table's rows: columns fov, cell_type, sure."""
    types = pd.read_csv(root / "cell_types.csv")
    index = types.fov + "_labels_" + types.label.astype(str)
    types = types.set_index(index).reindex(adata.obs_names)
    fov = adata.obs["region"].astype(str).str.removesuffix("_labels")
    return pd.DataFrame({"fov": fov, "cell_type": types.cell_type, "sure": types.mutual_match == 1})


def best_f1(y: np.ndarray, v: np.ndarray) -> float:
    """F1 at the threshold that suits this marker best, chosen with the labels in hand."""
    return max(f1_score(y, v > t) for t in np.unique(np.quantile(v, np.linspace(0.01, 0.999, 200))))


def lineage(values: pd.DataFrame, truth: pd.DataFrame, matrix: pd.DataFrame) -> pd.DataFrame:
    """Per marker: AUROC, F1 at 0.5 and F1 at its best threshold."""
    keep = truth.sure & truth.cell_type.isin(matrix.index)
    rows = {}
    for marker in matrix.columns:
        y = truth.cell_type[keep].map(matrix[marker])
        known = y.notna()
        y, v = y[known].astype(int).to_numpy(), values.loc[keep, marker][known].to_numpy()
        if 0 < y.sum() < len(y):
            rows[marker] = (len(y), y.mean(), roc_auc_score(y, v), f1_score(y, v > 0.5), best_f1(y, v))
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["cells", "positive", "auroc", "f1", "f1_best"]
    )


def one_threshold_f1(values: pd.DataFrame, truth: pd.DataFrame, matrix: pd.DataFrame) -> float:
    """Mean F1 at the one threshold for all markers that suits these labels best."""
    keep = truth.sure & truth.cell_type.isin(matrix.index)
    pairs = []
    for marker in matrix.columns:
        y = truth.cell_type[keep].map(matrix[marker])
        known = y.notna()
        y, v = y[known].astype(int).to_numpy(), values.loc[keep, marker][known].to_numpy()
        if 0 < y.sum() < len(y):
            pairs.append((y, v))
    grid = np.unique(np.quantile(np.concatenate([v for _, v in pairs]), np.linspace(0.01, 0.999, 300)))
    return float(max(np.mean([f1_score(y, v > t) for y, v in pairs]) for t in grid))


def fractions(values: pd.DataFrame, truth: pd.DataFrame, counted: pd.DataFrame) -> pd.DataFrame:
    """Per marker: mean absolute error and Spearman correlation of positive fractions over fields."""
    tumour = truth.cell_type.astype(str).str.startswith("TUMOR")
    size = truth.fov[tumour].value_counts()
    keep = tumour & truth.fov.isin(size.index[size >= 30])
    rows = {}
    for marker in FUNCTIONAL:
        share = (values.loc[keep, marker] > 0.5).groupby(truth.fov[keep]).mean()
        t = counted.loc[share.index, marker]
        rho = 0.0 if share.nunique() == 1 else share.corr(t, method="spearman")
        rows[marker] = ((share - t).abs().mean(), rho)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["error", "spearman"])


def report(values: pd.DataFrame, truth: pd.DataFrame, root: Path, *, title: str) -> pd.DataFrame:
    """Print the summary for all fields and both halves, and return the lineage table of all."""
    matrix = pd.read_csv(root / "assignment_matrix.csv").set_index("cell_type")
    counted = pd.read_csv(root / "tumor_positive_fraction.csv").set_index("fov")
    names = sorted(truth.fov.unique())
    print(f"\n{title}")
    print(
        f"{'fields':<8}{'AUROC':>8}{'F1@0.5':>8}{'F1 one':>8}{'F1 best':>9}{'frac. err':>11}{'Spearman':>10}"
    )
    tables = {}
    for half, chosen in (("all", names), ("choose", names[0::2]), ("final", names[1::2])):
        rows = truth.fov.isin(chosen)
        a = tables[half] = lineage(values[rows], truth[rows], matrix)
        b = fractions(values[rows], truth[rows], counted)
        one = one_threshold_f1(values[rows], truth[rows], matrix)
        print(
            f"{half:<8}{a.auroc.mean():8.3f}{a.f1.mean():8.3f}{one:8.3f}{a.f1_best.mean():9.3f}"
            f"{b.error.mean():11.3f}{b.spearman.mean():10.2f}"
        )
    return tables["all"]


def downstream(adata: AnnData) -> None:
    """Cluster and measure neighbourhoods as a user would."""
    import scanpy as sc
    import squidpy as sq

    sc.pp.neighbors(adata, use_rep="X")
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2)
    sq.gr.spatial_neighbors_knn(adata, library_key="region")
    sq.gr.nhood_enrichment(adata, cluster_key="leiden", show_progress_bar=False)


def main() -> None:
    """Run the chain and print the tables."""
    default = os.environ.get("NIMBUS_SD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--model", default="nimbus-sd-s")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the cell table and the figures")
    args = parser.parse_args()
    root = args.data / "mibi_breast_dcis"
    warnings.simplefilter("ignore")

    start = time.perf_counter()
    sdata = nb.io.read_fovs(root / "image_data", labels=root / "segmentation", mpp=MPP)
    nb.tl.predict(sdata, model=args.model, precision=args.precision, views=args.views, progress=False)
    adata = sdata["nimbus"]
    print(f"{adata.n_obs} cells x {adata.n_vars} markers in {time.perf_counter() - start:.0f} s")
    truth = load_truth(root, adata)
    expression = adata.to_df("integrated_expression") / adata.var["scale"]
    report(expression, truth, root, title="integrated expression (mean / 99.99th percentile)")
    table = report(adata.to_df(), truth, root, title=f"scores of {args.model}")
    print(f"\nper marker, all fields\n{table.round(3).to_string()}")
    downstream(adata)
    print(f"\nLeiden: {adata.obs.leiden.nunique()} clusters; neighbourhood enrichment done")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        nb.io.write_cell_table(adata, args.out / "cell_table.csv", overwrite=True)
        nb.pl.image(
            sdata, ["PanKRT", "SMA", "CD45"], labels="fov3105_labels", save=args.out / "image.png", show=False
        )
        nb.pl.marker_heatmap(adata, "leiden", save=args.out / "clusters.png", show=False)
        print(f"cell table and figures in {args.out}")


if __name__ == "__main__":
    main()
