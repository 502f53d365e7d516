"""Fine-tuning on four real fields' silver labels: does it help the other fields.

    python benchmarks/finetune.py --data FOLDER --out FOLDER [--steps N] [--model NAME]

The first four fields for choosing of ``mibi_breast_dcis`` get silver labels from their cell types and the
assignment matrix; the network is fine-tuned on them and scores the other fields. The figures for choosing and
the final ones are over fields that it was not tuned on.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import pandas as pd
import spatialdata as sd

import nimbus_sd as nb
from dcis import MPP, lineage, load_truth


def read(root: Path, fields: list[str] | None = None) -> sd.SpatialData:
    """All fields, or some, with their channels."""
    return nb.io.read_fovs(root / "image_data", labels=root / "segmentation", mpp=MPP, fovs=fields)


def main() -> None:
    """Print the table."""
    default = os.environ.get("NIMBUS_SD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="nimbus-sd-s")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    root = args.data / "mibi_breast_dcis"
    matrix = pd.read_csv(root / "assignment_matrix.csv").set_index("cell_type")
    markers = list(matrix.columns)

    sdata = read(root)
    nb.tl.predict(sdata, model=args.model, channels=markers, progress=False)
    before = sdata["nimbus"]
    truth = load_truth(root, before)
    names = sorted(truth.fov.unique())
    tuned, rest = names[0::2][:4], names[0::2][4:]

    regions = [f"{name}_labels" for name in tuned]
    four = read(root, tuned)
    table = before[before.obs.region.isin(regions)].copy()
    table.obs["region"] = table.obs["region"].cat.remove_unused_categories()
    # only cells whose type could be carried over both ways
    kinds = truth.loc[table.obs_names]
    table.obs["cell_type"] = kinds.cell_type.where(kinds.sure)
    table.uns["spatialdata_attrs"]["region"] = regions
    nb.pp.silver_labels(table, matrix, cell_type_key="cell_type")
    four["silver"] = table
    mine = nb.tl.finetune(
        four, out=args.out, table="silver", model=args.model, steps=args.steps, mpp=MPP, progress=True
    )
    nb.tl.predict(sdata, model=mine, channels=markers, overwrite=True, progress=False)
    after = sdata["nimbus"]
    print(f"{'fields':<28}{'F1@0.5 before':>14}{'after':>8}{'AUROC before':>14}{'after':>8}")
    for said, chosen in (("tuned on", tuned), ("choose, not tuned on", rest), ("final", names[1::2])):
        rows = truth.fov.isin(chosen)
        old, new = (lineage(a.to_df()[rows], truth[rows], matrix) for a in (before, after))
        print(
            f"{said:<28}{old.f1.mean():14.3f}{new.f1.mean():8.3f}{old.auroc.mean():14.3f}{new.auroc.mean():8.3f}"
        )


if __name__ == "__main__":
    main()
