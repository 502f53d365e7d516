"""What goes along with being wrong: the paper's five confounders and their mutual information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.truth import matrix, score_matrices, truth_matrix
from nimbus_sd.arrays.confounders import coefficient_of_variation, neighbour_counts

CONFOUNDERS = ("cell_size", "cell_density", "marker_sparsity", "marker_rarity", "marker_heterogeneity")
_NEIGHBOURS = 3  # of the estimator, scikit-learn's default


def confounders(
    adata: ad.AnnData,
    truth: str | pd.DataFrame | ad.AnnData,
    scores: str | Sequence[str] | Mapping[str, str | pd.DataFrame | ad.AnnData] | None = None,
    *,
    threshold: float | Mapping[str, float] = 0.5,
    markers: str | Sequence[str] | None = None,
    radius: float = 120.0,
    mpp: float = 1.0,
    unit: float | None = None,
    region_key: str = "region",
    expression_layer: str | None = "integrated_expression",
    max_cells: int = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mutual information between five confounders and the prediction being wrong.

    The confounders are cell size (area), cell density (other cells within `radius`),
    marker sparsity (other positive cells within `radius`), marker rarity (share of
    positive cells per marker and field) and marker heterogeneity (coefficient of
    variation of the integrated expression per marker and field). Positive means by
    `truth`; cells without a label count as cells, never as positive. Rarity and
    heterogeneity are one number per marker and field, so that anything else that
    differs between fields is in their figures too.

    Parameters
    ----------
    adata
        Table with ``obs["area_px"]``, ``obsm["spatial"]`` ``(x, y)`` and the field in
        ``obs[region_key]``.
    truth, scores, markers
        As in :func:`nimbus_sd.tl.evaluate`.
    threshold
        Cells above it are called positive; a number, or one per name in `scores`.
    radius
        Model px: the paper's 120 at its `mpp` of 1 are 120 µm.
    mpp
        µm per model px.
    unit
        µm per unit of ``obsm["spatial"]``. None takes 1 if the table was made in the
        coordinate system ``"microns"``, else the pixel size that ``obs["area_um2"] /
        obs["area_px"]`` tells, which is right where positions are in pixels of the
        image, as for fields in a coordinate system of their own.
    region_key
        Column of ``obs`` with the field: neighbours never cross fields.
    expression_layer
        Mean intensity per cell; None leaves marker heterogeneity out.
    max_cells
        The estimator (nearest neighbours) is given at most so many cells x markers
        per row, drawn with `seed`.
    seed
        Decides the draw and the estimator's tie-breaking noise.

    Returns
    -------
    Tidy frame, one row per marker (and ``"(all)"``, markers pooled), score layer and
    confounder: ``marker``, ``scores``, ``confounder``, ``mutual_information`` (nats,
    ≥ 0), ``share`` of the entropy of being wrong, ``n``, ``n_wrong``, ``reason`` where
    it is NaN (too few wrong or right cells, a confounder that does not vary).

    Raises
    ------
    ElementNotFoundError
        If a layer, marker or column does not exist.
    InputError
        As :func:`nimbus_sd.tl.evaluate`; if there are no positions or the unit is unknown.

    References
    ----------
    Rumberger, Greenwald et al. (2025), *Automated classification of cellular expression in
    multiplexed imaging data with Nimbus*, Methods, "Confounders analysis"; estimator:
    ``sklearn.feature_selection.mutual_info_classif``.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(160, 160))
    >>> nb.tl.predict(sdata, channels=["CD45", "VIM"], progress=False)
    >>> found = nb.tl.confounders(sdata["nimbus"], sdata["truth"], markers=["CD45", "VIM"])
    >>> sorted(set(found["marker"]))
    ['(all)', 'CD45', 'VIM']
    """
    if not (radius > 0 and mpp > 0 and max_cells > 0):
        msg = f"radius={radius}, mpp={mpp}, max_cells={max_cells} must be above 0"
        raise InputError(msg)
    labels, names = truth_matrix(adata, truth, markers=markers)
    values = score_matrices(adata, scores, names)
    features = _features(
        adata, labels, names, radius=radius * mpp / _unit(adata, unit), region_key=region_key,
        expression_layer=expression_layer,
    )  # fmt: skip
    rows = []
    for name, every in values.items():
        cut = _threshold(threshold, name)
        known = ~np.isnan(labels) & ~np.isnan(every)
        wrong = (every > cut) != (labels == 1)
        groups = {"(all)": known} | {
            marker: known & (np.arange(len(names)) == i) for i, marker in enumerate(names)
        }
        for marker, mask in groups.items():
            x = np.column_stack([f[mask] for f in features.values()])
            found = _mutual_information(x, wrong[mask], max_cells=max_cells, seed=seed)
            counts = {"n": int(mask.sum()), "n_wrong": int(wrong[mask].sum())}
            rows += [
                {"marker": marker, "scores": name, "confounder": c, **each, **counts}
                for c, each in zip(features, found, strict=True)
            ]
    columns = ["marker", "scores", "confounder", "mutual_information", "share", "n", "n_wrong", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _threshold(threshold: float | Mapping[str, float], name: str) -> float:
    if not isinstance(threshold, Mapping):
        return float(threshold)
    if name not in threshold:
        msg = f"threshold= has none for scores {name!r}; it names {', '.join(map(repr, threshold))}"
        raise InputError(msg)
    return float(threshold[name])


def _unit(adata: ad.AnnData, unit: float | None) -> float:
    if unit is not None:
        if not (np.isfinite(unit) and unit > 0):
            msg = f"unit={unit} must be above 0: the µm per unit of obsm['spatial']"
            raise InputError(msg)
        return unit
    systems = adata.uns.get("nimbus", {}).get("coordinate_systems", {})
    if systems and set(systems.values()) == {"microns"}:
        return 1.0
    if "area_um2" not in adata.obs or "area_px" not in adata.obs:
        msg = (
            "the unit of obsm['spatial'] is unknown: obs lacks 'area_um2'. Pass unit=, the µm per unit of "
            "the positions: the pixel size where they are in px, 1 where they are in µm"
        )
        raise InputError(msg)
    sizes = np.sqrt(adata.obs["area_um2"] / adata.obs["area_px"]).to_numpy(np.float64)
    low, high = np.nanmin(sizes), np.nanmax(sizes)
    if not high < low * 1.01:
        msg = (
            f"the fields have pixels of {low:.3g} to {high:.3g} µm, so positions have no one unit; call this "
            "for one pixel size at a time, or pass unit= if positions are in one unit"
        )
        raise InputError(msg)
    return float(np.nanmedian(sizes))


def _features(
    adata: ad.AnnData,
    labels: np.ndarray,
    names: list[str],
    *,
    radius: float,
    region_key: str,
    expression_layer: str | None,
) -> dict[str, np.ndarray]:
    """Confounder to float64 ``(n_obs, n_markers)``."""
    for key in ("area_px", region_key):
        if key not in adata.obs:
            msg = f"obs has no column {key!r}; valid: {', '.join(map(repr, adata.obs))}"
            raise ElementNotFoundError(msg)
    if "spatial" not in adata.obsm:
        msg = "the table has no obsm['spatial'] (x, y); write the cells' centroids there"
        raise InputError(msg)
    points = np.asarray(adata.obsm["spatial"], dtype=np.float64)[:, :2]
    expression = None
    if expression_layer is not None:
        expression = matrix(adata, expression_layer)[:, adata.var_names.get_indexer(names)]
    out = {name: np.full(labels.shape, np.nan) for name in CONFOUNDERS}
    out["cell_size"][:] = adata.obs["area_px"].to_numpy(np.float64)[:, None]
    for rows in adata.obs.groupby(region_key, observed=True).indices.values():
        positive = labels[rows] == 1
        density, sparsity = neighbour_counts(points[rows], radius, positive=positive)
        out["cell_density"][rows] = density[:, None]
        out["marker_sparsity"][rows] = sparsity
        labelled = np.maximum((~np.isnan(labels[rows])).sum(0), 1)
        out["marker_rarity"][rows] = positive.sum(0) / labelled
        if expression is not None:
            out["marker_heterogeneity"][rows] = coefficient_of_variation(expression[rows])
    if expression is None:
        del out["marker_heterogeneity"]
    return out


def _mutual_information(
    x: np.ndarray, wrong: np.ndarray, *, max_cells: int, seed: int
) -> list[dict[str, float | str]]:
    from sklearn.feature_selection import mutual_info_classif  # heavy, and only needed here

    if wrong.size > max_cells:
        drawn = np.random.default_rng(seed).choice(wrong.size, max_cells, replace=False)
        x, wrong = x[drawn], wrong[drawn]
    fewest = min(int(wrong.sum()), int((~wrong).sum()))
    reason = "" if fewest > _NEIGHBOURS else f"only {fewest} cells are {_rarer(wrong)}"
    out: list[dict[str, float | str]] = []
    share = wrong.mean() if wrong.size else 0.0
    entropy = -sum(p * np.log(p) for p in (share, 1 - share) if p > 0)
    for column in x.T:
        known = ~np.isnan(column)
        why = reason or ("does not vary here" if np.unique(column[known]).size < 2 else "")
        if why:
            out.append({"mutual_information": np.nan, "share": np.nan, "reason": why})
            continue
        found = mutual_info_classif(
            column[known, None], wrong[known], discrete_features=False, n_neighbors=_NEIGHBOURS,
            random_state=seed,
        )[0]  # fmt: skip
        out.append({"mutual_information": float(found), "share": float(found / entropy), "reason": ""})
    return out


def _rarer(wrong: np.ndarray) -> str:
    return "wrong" if wrong.sum() <= (~wrong).sum() else "right"
