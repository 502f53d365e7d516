"""Draw the pictures of the documentation from simulated tissue: ``python docs/_static/make_pictures.py``.

Two minutes on one core. What is drawn is what comes out: seed and crop are fixed below,
wrong calls are marked on both sides, and integrated expression gets the threshold that
suits the truth best. The crop is the one with most cells that are truly positive.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
import torch
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from sklearn.metrics import adjusted_rand_score
from spatialdata import SpatialData

import nimbus_sd as nb
from nimbus_sd.arrays.mask import interior_mask

HERE = Path(__file__).parent
MARKER = "CD8"
SIDE = 240  # px of the crop that is shown
WRONG = "#d81b60"


def main() -> None:
    """Write every picture beside this file."""
    warnings.simplefilter("ignore")  # the libraries' own notices
    plt.rcParams.update({"font.size": 10, "savefig.dpi": 150, "image.interpolation": "nearest"})
    sdata = nb.datasets.simulated_tissue(n_fovs=4, shape=(640, 640), seed=7)
    nb.tl.predict(sdata, progress=False)
    hero(sdata)
    clusters(sdata)
    normalization(sdata)
    exactness()


def best_threshold(values: np.ndarray, truth: np.ndarray) -> float:
    """The threshold of the largest F1, chosen with the truth in hand."""
    known = ~np.isnan(truth)
    candidates = np.quantile(values[known], np.linspace(0.01, 0.99, 99))
    return float(max(candidates, key=lambda t: f1(values[known] > t, truth[known] == 1)))


def f1(called: np.ndarray, true: np.ndarray) -> float:
    """Harmonic mean of precision and recall."""
    hits = 2 * int((called & true).sum())
    return hits / max(hits + int((called ^ true).sum()), 1)


def truth_of(sdata: SpatialData, marker: str) -> np.ndarray:
    """1, 0 or NaN per row of the table of scores."""
    return np.asarray(sdata["truth"][sdata["nimbus"].obs_names, marker].X).ravel()


def hero(sdata: SpatialData) -> None:
    """Image, integrated expression and scores of one marker, with every wrong call marked."""
    adata, truth = sdata["nimbus"], truth_of(sdata, MARKER)
    mean = np.asarray(adata[:, MARKER].layers["integrated_expression"]).ravel()
    score = np.asarray(adata[:, MARKER].X).ravel()
    field, crop = richest(sdata, truth)
    image = sdata[f"{field}_image"].sel(c=MARKER).values
    labels = sdata[f"{field}_labels"].values
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 4.9), layout="constrained")
    scale = float(adata.var.loc[MARKER, "scale"])
    drawn = axes[0].imshow(image[crop] / scale, cmap="gray", norm=PowerNorm(0.5, 0, 1))
    outline(axes[0], labels[crop])
    axes[0].set_title(f"{MARKER} and the segmentation", loc="left")
    figure.colorbar(drawn, ax=axes[0], orientation="horizontal", shrink=0.7, label="normalised intensity")
    threshold = best_threshold(mean, truth)
    panels = (
        (axes[1], mean / scale, threshold / scale, "mean intensity per cell", "integrated expression"),
        (axes[2], score, 0.5, "score per cell", "score"),
    )
    for ax, values, cut, title, label in panels:
        rows = (adata.obs["region"] == f"{field}_labels").to_numpy()
        norm = Normalize(0, 1) if ax is axes[2] else PowerNorm(0.5, 0, np.quantile(values, 0.995))
        drawn = paint(ax, labels[crop], adata[rows], values[rows], norm)
        n = mark_wrong(ax, labels[crop], adata[rows], values[rows] > cut, truth[rows])
        overall = f1((values > cut)[~np.isnan(truth)], truth[~np.isnan(truth)] == 1)
        cut_text = "0.5" if ax is axes[2] else "the best threshold"
        ax.set_title(f"{title}: {n} wrong calls", loc="left")
        ax.set_xlabel(f"cut at {cut_text}; F1 {overall:.2f} over all fields")
        ticks = None if ax is axes[2] else [0, 0.01, 0.05, 0.1]
        figure.colorbar(drawn, ax=ax, orientation="horizontal", shrink=0.7, label=label, ticks=ticks)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    marks = [plt.Line2D([], [], ls="", marker=shape, color=WRONG, mec="white", ms=9) for shape in ("^", "v")]
    figure.legend(
        marks, ["called positive, is negative", "missed"], loc="outside lower center", ncols=2, frameon=False
    )
    figure.savefig(HERE / "hero.png")
    plt.close(figure)


def richest(sdata: SpatialData, truth: np.ndarray) -> tuple[str, tuple[slice, slice]]:
    """Field and crop that hold most of the marker's truly positive cells."""
    obs = sdata["nimbus"].obs[truth == 1]
    best, where = -1, None
    for region, cells in obs.groupby("region", observed=True):
        labels = sdata[region].values
        for y in range(0, labels.shape[0] - SIDE + 1, 40):
            for x in range(0, labels.shape[1] - SIDE + 1, 40):
                crop = slice(y, y + SIDE), slice(x, x + SIDE)
                n = np.isin(np.unique(labels[crop]), cells["instance_id"]).sum()
                if n > best:
                    best, where = n, (str(region).removesuffix("_labels"), crop)
    return where


def outline(ax: Axes, labels: np.ndarray) -> None:
    """Draw the borders of cells thinly."""
    border = (labels > 0) & ~interior_mask(labels)
    ax.imshow(np.where(border, 1.0, np.nan), cmap="Blues", vmin=0, vmax=1.4, alpha=0.6)


def paint(ax: Axes, labels: np.ndarray, adata: AnnData, values: np.ndarray, norm: Normalize) -> object:
    """Fill every cell with its value; thin white borders keep neighbours apart."""
    table = np.full(int(labels.max()) + 1, np.nan)
    ids = adata.obs["instance_id"].to_numpy()
    here = ids <= labels.max()
    table[ids[here]] = values[here]
    painted = np.where(interior_mask(labels), table[labels], np.nan)
    return ax.imshow(painted, cmap="viridis", norm=norm)


def mark_wrong(ax: Axes, labels: np.ndarray, adata: AnnData, called: np.ndarray, truth: np.ndarray) -> int:
    """Mark cells whose call is not the truth; return how many there are."""
    shown = np.unique(labels)
    n = 0
    for label, call, true in zip(adata.obs["instance_id"], called, truth, strict=True):
        if np.isnan(true) or call == (true == 1) or label not in shown:
            continue
        y, x = np.nonzero(labels == label)
        ax.plot(x.mean(), y.mean(), "^" if call else "v", color=WRONG, mec="white", ms=9)
        n += 1
    return n


def clusters(sdata: SpatialData) -> None:
    """UMAP of integrated expression and of scores, coloured by the true cell types."""
    adata = sdata["nimbus"]
    types = sdata["truth"].obs["cell_type"].reindex(adata.obs_names).astype(str)
    adata = adata[(types != "").to_numpy()].copy()
    adata.obs["cell type"] = types[adata.obs_names].astype("category")
    expression = adata.layers["integrated_expression"]
    adata.obsm["arcsinh"] = np.arcsinh(expression / np.quantile(expression, 0.99, axis=0).clip(1e-6))
    figure, axes = plt.subplots(1, 2, figsize=(13.2, 5.2), layout="constrained")
    for ax, representation, name in zip(
        axes, ("arcsinh", "X"), ("Integrated expression", "Scores"), strict=True
    ):
        sc.pp.neighbors(adata, use_rep=representation, random_state=0)
        sc.tl.leiden(adata, flavor="igraph", n_iterations=2, resolution=0.5, random_state=0)
        sc.tl.umap(adata, random_state=0)
        same = adjusted_rand_score(adata.obs["cell type"], adata.obs["leiden"])
        sc.pl.umap(
            adata,
            color="cell type",
            ax=ax,
            show=False,
            frameon=False,
            size=14,
            legend_loc="right margin" if ax is axes[1] else "none",
            title=f"{name}: adjusted Rand index {same:.2f}",
        )
    figure.savefig(HERE / "clusters.png")
    plt.close(figure)


def normalization(sdata: SpatialData) -> None:
    """Pixels of three markers with the intensity that maps to 1."""
    markers = ["CD3", "FOXP3", "PanCK", "Ki67"]
    scales = nb.pp.normalization(sdata, channels=markers, progress=False)
    nb.pl.normalization(sdata, scales, markers=markers, show=False, save=HERE / "normalization.png")
    plt.close("all")


def exactness() -> None:
    """Difference of tiled from whole-image probabilities, with and without a halo."""
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(512, 512), mpp=1.0, channels=["CD3"], seed=3)
    model = nb.models.load("nimbus-sd-s")
    scale = nb.pp.normalization(sdata, progress=False).scale[0]
    pixels = np.clip(sdata["fov0_image"].values[0].astype(np.float32) / scale, 0, 1) ** 0.5
    mask = interior_mask(sdata["fov0_labels"].values).astype(np.float32)
    field = torch.from_numpy(np.stack([pixels, mask])[None])
    whole = probabilities(model.net, field)
    figure, axes = plt.subplots(1, 3, figsize=(13.2, 4.6), layout="constrained")
    axes[0].imshow(whole, cmap="viridis", vmin=0, vmax=1)
    axes[0].set_title("one pass over the whole image", loc="left")
    for ax, halo in zip(axes[1:], (0, 96), strict=True):
        gap = np.abs(tiled(model.net, field, tile=128, halo=halo) - whole)
        drawn = ax.imshow(gap, cmap="magma", vmin=0, vmax=0.2)
        ax.set_title(f"tiles of 128 px, halo {halo} px: off by at most {gap.max():.1g}", loc="left")
    figure.colorbar(drawn, ax=axes[1:], shrink=0.8, label="|tiled − whole|, probability")
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    figure.savefig(HERE / "exactness.png")
    plt.close(figure)


def probabilities(net: torch.nn.Module, field: torch.Tensor) -> np.ndarray:
    """Network output ``(y, x)`` in [0, 1]."""
    with torch.inference_mode():
        return torch.sigmoid(net(field))[0, 0].numpy()


def tiled(net: torch.nn.Module, field: torch.Tensor, *, tile: int, halo: int) -> np.ndarray:
    """The same from tiles, each with `halo` px around it, clipped at the image's border."""
    side = field.shape[-1]
    out = np.zeros((side, side), np.float32)
    for y in range(0, side, tile):
        for x in range(0, side, tile):
            top, left = max(y - halo, 0), max(x - halo, 0)
            part = field[..., top : min(y + tile + halo, side), left : min(x + tile + halo, side)]
            found = probabilities(net, part)
            out[y : y + tile, x : x + tile] = found[y - top : y - top + tile, x - left : x - left + tile]
    return out


if __name__ == "__main__":
    main()
