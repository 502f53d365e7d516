"""Cell types found again without segmentation, on simulated tissue whose segmentation is wrong.

    python benchmarks/embedding_simulated.py [--fields 8] [--seeds 3] [--platform fluorescence16] [--epochs N]

Fields of 384 x 384 µm, 20 markers, 12 cell types with known truth. The labels are wrong as bad ones are: 15 %
of the cells merged, 15 % split, 5 % missed, borders 1.5 µm too wide and uneven, everything shifted by up to
1.5 µm. Mean intensities are taken over these labels (and, for comparison, the true cells); the embedding
is trained and made without labels, at centres as a good detector of nuclei gives them (0.7 µm beside the
true ones, standard deviation), or with ``--centers detected`` at those that ``nb.pp.detect_nuclei`` finds.
Each true cell gets the cluster of the label that covers most of it, or of the centre nearest to its own
(within the cell); one that has none is not found. Clusters (PhenoGraph, k = 8) are named by majority.
"lineages" has the granularity of the paper's seven categories, "types" all twelve.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import ndimage
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel
from spatialdata.transformations import Identity

import nimbus_sd as nb
from _probe import clustered, levelled, own_rates, rediscovered
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig
from nimbus_sd.simulation import FieldConfig, PlatformConfig, SegmentationConfig, simulate_field

MPP, SIDE = 0.5, 768
WRONG = SegmentationConfig(dilate=1.5, wobble=0.6, shift=1.5, merged=0.15, split=0.15, missed=0.05)
LINEAGES = {
    **dict.fromkeys(("CD4 T", "CD8 T", "Treg"), "T cell"),
    **dict.fromkeys(("macrophage", "dendritic"), "myeloid"),
    **dict.fromkeys(("fibroblast", "smooth muscle", "endothelial"), "stromal"),
    **dict.fromkeys(("epithelial", "basal"), "epithelial"),
}


def simulate(n: int, platform: str, seed: int) -> tuple[SpatialData, pd.DataFrame]:
    """Images with wrong and true labels, and the true cells: field, id, type, y, x."""
    images, labels, cells = {}, {}, []
    for i in range(n):
        wrong, true = (
            simulate_field(
                1000 * seed + i,
                FieldConfig((SIDE, SIDE), MPP, segmentation=s, platform=PlatformConfig(kind=platform)),
            )
            for s in (WRONG, SegmentationConfig())
        )
        system = {f"fov{i}": Identity()}
        images[f"fov{i}_image"] = Image2DModel.parse(
            wrong.image,
            dims=("c", "y", "x"),
            c_coords=list(wrong.channel_names),
            transformations=dict(system),
        )
        for name, array in (("labels", wrong.labels), ("true", true.labels)):
            labels[f"fov{i}_{name}"] = Labels2DModel.parse(
                array, dims=("y", "x"), transformations=dict(system)
            )
        ids = true.instance_ids
        y, x = np.array(ndimage.center_of_mass(true.labels > 0, true.labels, ids)).T
        cells.append(pd.DataFrame({"field": f"fov{i}", "id": ids, "type": true.cell_types, "y": y, "x": x}))
    return SpatialData(images=images, labels=labels), pd.concat(cells, ignore_index=True)


def find_centers(sdata: SpatialData, cells: pd.DataFrame, how: str, seed: int) -> dict[str, str]:
    """Points elements with cell centres, and the image of each."""
    images = {field: f"{field}_image" for field in cells.field.unique()}
    if how == "detected":
        nb.pp.detect_nuclei(
            sdata, image=list(images.values()), channel="HH3", diameter_um=4.0, mpp=MPP, progress=False
        )
        return {f"{image}_nuclei": image for image in images.values()}
    rng = np.random.default_rng(seed)
    for field, group in cells.groupby("field", sort=False):
        places = group[["x", "y"]].to_numpy() + 0.5 + rng.normal(0, 0.7 / MPP, (len(group), 2))
        sdata[f"{field}_nuclei"] = PointsModel.parse(
            np.clip(places, 0, SIDE - 1e-3), transformations={field: Identity()}
        )
    return {f"{field}_nuclei": image for field, image in images.items()}


def by_labels(sdata: SpatialData, cells: pd.DataFrame, which: str) -> np.ndarray:
    """Mean intensities of the label that covers most of each true cell; NaN where none does."""
    names = {f"{f}_{which}": f"{f}_image" for f in cells.field.unique()}
    nb.pp.integrated_expression(sdata, image=names, table=which, progress=False)
    values = sdata[which].to_df()
    rows = []
    for field, group in cells.groupby("field", sort=False):
        labels, true = (sdata[f"{field}_{w}"].values for w in (which, "true"))
        pairs = pd.DataFrame({"true": true.ravel(), "label": labels.ravel()}).query("true > 0 and label > 0")
        best = pairs.groupby("true").label.agg(lambda s: s.mode()[0])
        rows += [f"{field}_{which}_{best[i]}" if i in best.index else "" for i in group.id]
    return values.reindex(rows).to_numpy()


def by_nuclei(sdata: SpatialData, cells: pd.DataFrame, table: str) -> tuple[np.ndarray, np.ndarray]:
    """Embedding and activations of the nucleus nearest to each true cell's centre; NaN where it has none."""
    adata = sdata[table]
    found = np.full(len(cells), -1)
    spatial = adata.obsm["spatial"]
    region = adata.obs["region"].astype(str).to_numpy()
    for field, group in cells.groupby("field", sort=False):
        true = sdata[f"{field}_true"].values
        rows = np.flatnonzero(np.char.startswith(region.astype(str), f"{field}_"))
        x, y = spatial[rows].T
        inside = true[np.clip(y.astype(int), 0, SIDE - 1), np.clip(x.astype(int), 0, SIDE - 1)]
        at = pd.Series(np.arange(len(cells))[group.index], index=group.id)
        mine = pd.DataFrame({"id": inside, "row": rows, "y": y, "x": x}).query("id > 0")
        centre = group.set_index("id").loc[mine.id]
        mine["distance"] = np.hypot(
            mine.y.to_numpy() - centre.y.to_numpy(), mine.x.to_numpy() - centre.x.to_numpy()
        )
        nearest = mine.sort_values("distance").drop_duplicates("id")
        found[at[nearest.id]] = nearest.row
    there = found >= 0
    out = []
    for values in (adata.obsm["X_nextchannel"], np.asarray(adata.X)):
        rows = np.full((len(cells), values.shape[1]), np.nan)
        rows[there] = values[found[there]]
        out.append(rows)
    return out[0], out[1]


def scaled(values: np.ndarray) -> np.ndarray:
    """z-scores over the rows that are there."""
    return (values - np.nanmean(values, axis=0)) / np.maximum(np.nanstd(values, axis=0), 1e-9)


def level(values: np.ndarray) -> np.ndarray:
    """:func:`_probe.levelled` of the rows that are there."""
    out = np.full(values.shape, np.nan)
    there = np.isfinite(values).all(axis=1)
    out[there] = levelled(values[there])
    return out


def main() -> None:
    """Simulate, train, embed, cluster, and print the rates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fields", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, help="None takes the default of train_embedding")
    parser.add_argument("--platform", default="fluorescence16")
    parser.add_argument("--centers", choices=("given", "detected"), default="given")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--architectures", nargs="+", default=["next_channel", "cim"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    tables: dict[str, list[pd.Series]] = {}
    config = EmbeddingTrainConfig.small()
    if args.temperature is not None:
        config = replace(config, temperature=args.temperature)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        sdata, cells = simulate(args.fields, args.platform, seed)
        types = cells.type.to_numpy(str)
        lineages = cells.type.replace(LINEAGES).to_numpy(str)
        kinds = {
            f"mean intensity, {w}": scaled(level(by_labels(sdata, cells, w))) for w in ("true", "labels")
        }
        centers = find_centers(sdata, cells, args.centers, seed)
        for architecture in args.architectures:
            model = nb.tl.train_embedding(
                sdata,
                centers=centers,
                architecture=architecture,
                config=config,
                epochs=args.epochs,
                seed=seed,
                mpp=MPP,
                progress=False,
            )
            nb.tl.embed(sdata, model=model, centers=centers, table=architecture, mpp=MPP, progress=False)
            embedding, activation = by_nuclei(sdata, cells, architecture)
            kinds[f"{architecture} embedding"] = embedding
            kinds[f"{architecture} activations"] = scaled(level(activation))
            kinds[f"{architecture} both"] = np.hstack([scaled(level(activation)), 0.3 * scaled(embedding)])
        for kind, values in kinds.items():
            clusters = clustered(values, seed=seed)
            for grain, reference in (("types", types), ("lineages", lineages)):
                rates = own_rates(rediscovered(clusters, reference))
                tables.setdefault(f"{kind}|{grain}", []).append(rates)
                print(
                    f"seed {seed}  {kind:<32}{grain:<10} mean {rates.mean():.3f}  "
                    f"least {rates.min():.3f} ({rates.idxmin()})",
                    flush=True,
                )
    for grain in ("types", "lineages"):
        rows = {
            k.split("|")[0]: pd.concat(v, axis=1).mean(axis=1) for k, v in tables.items() if k.endswith(grain)
        }
        print(f"\nrediscovery of {grain}, mean over {args.seeds} seeds, {args.platform}")
        print(pd.DataFrame(rows).T.round(2).to_string())


if __name__ == "__main__":
    main()
