"""CODEX lymph node: scores of CD4, CD8 and FOXP3 against clusters named by their markers.

    python benchmarks/codex.py --data FOLDER [--model NAME]

FOLDER holds ``codex_lymph_node`` (sagar87/spatialproteomics): ``image.tiff`` (Hoechst, CD4, CD8, FOXP3,
BCL6),
``labels.tiff``, ``cell_types.csv`` with 12 clusters, of which 4 are CD8 T, 10 regulatory T (CD4 and FOXP3),
2 and 5 other CD4 T cells; all others count as negative. About 1 µm per px.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from sklearn.metrics import f1_score, roc_auc_score
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

import nimbus_sd as nb
from dcis import best_f1

CHANNELS = ["Hoechst", "CD4", "CD8", "FOXP3", "BCL6"]
POSITIVE = {"CD4": (2, 5, 10), "CD8": (4,), "FOXP3": (10,)}


def read(root: Path) -> tuple[SpatialData, pd.Series]:
    """Image and labels, and the cluster of each label."""
    image, labels = tifffile.imread(root / "image.tiff"), tifffile.imread(root / "labels.tiff")
    sdata = SpatialData(
        images={"image": Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=CHANNELS)},
        labels={"cells": Labels2DModel.parse(labels.astype(np.uint32), dims=("y", "x"))},
    )
    return sdata, pd.read_csv(root / "cell_types.csv").set_index("label").cell_type


def report(values: pd.DataFrame, cluster: pd.Series, *, title: str) -> None:
    """Print one line per marker, and their mean."""
    rows = []
    for marker, positive in POSITIVE.items():
        y, v = cluster.isin(positive).to_numpy().astype(int), values[marker].to_numpy()
        rows.append((y.mean(), roc_auc_score(y, v), f1_score(y, v > 0.5), best_f1(y, v)))
    frame = pd.DataFrame(rows, index=list(POSITIVE), columns=["positive", "AUROC", "F1@0.5", "F1 best"])
    frame.loc["mean"] = frame.mean()
    print(f"\n{title}\n{frame.round(3).to_string()}")


def main() -> None:
    """Print the tables."""
    default = os.environ.get("NIMBUS_SD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--model", default="nimbus-sd-s")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sdata, cluster = read(args.data / "codex_lymph_node")
    nb.tl.predict(sdata, model=args.model, precision=args.precision, mpp=1.0, progress=False)
    adata = sdata["nimbus"]
    cells = adata[adata.obs.instance_id.isin(cluster.index)]
    cluster = cluster.loc[cells.obs.instance_id.to_numpy()]
    report(cells.to_df("integrated_expression"), cluster, title="integrated expression")
    report(cells.to_df(), cluster, title=f"scores of {args.model}")


if __name__ == "__main__":
    main()
