"""Scores on a scale on which distances mean something, for clustering."""

from __future__ import annotations

import anndata as ad
import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.truth import check_adata, matrix

METHODS = ("logit_z", "logit", "arcsine_z", "arcsine", "z")


def transform_scores(
    adata: ad.AnnData,
    *,
    method: str = "logit_z",
    layer: str | None = None,
    key_added: str = "transformed",
    eps: float = 0.01,
) -> None:
    """Transform scores for clustering and neighbour graphs.

    Scores crowd at 0 and 1, so that between two sure calls distances say nothing and a
    common marker outweighs rare ones; the logit spreads the ends, the z-score gives all
    markers one weight.

    Parameters
    ----------
    adata
        Table with scores in [0, 1].
    method
        ``"logit"``: ``log(p / (1 - p))`` of scores clipped to ``[eps, 1 - eps]``;
        ``"arcsine"``: ``arcsin(sqrt(p))``; ``"z"``: minus the marker's mean, over its standard
        deviation (0 for a marker that is the same in all cells); ``"logit_z"`` and
        ``"arcsine_z"``: both in turn.
    layer
        Layer with the scores; None takes ``X``.
    key_added
        Layer for the result.
    eps
        For the logit, in (0, 0.5).

    Returns
    -------
    None; writes ``layers[key_added]`` float32, the same in ``obsm[f"X_{key_added}"]`` (for
    ``use_rep`` of :func:`scanpy.pp.neighbors`), and ``uns[key_added]`` with the
    parameters and, where used, ``mean`` and ``sd`` per marker.

    Raises
    ------
    ElementNotFoundError
        If the layer does not exist.
    InputError
        If scores leave [0, 1] or are NaN, the table is empty, or a parameter is out of range.
        Nothing is written then.

    Notes
    -----
    Adjusted Rand index against cell types: k-means with as many clusters as types (mean of 5
    seeds), and Leiden at resolution 0.5 and 1 (15 neighbours, mean of 3 seeds). Simulated ion
    counts and fluorescence: 4,658 cells, 12 types, 19 markers, bundled weights. MIBI breast DCIS:
    7,656 cells with sure silver labels, 21 types, 18 lineage markers, earlier weights. The last
    line is integrated expression (arcsinh, z-score).

    ============ ===================== ===================== =====================
    method       simulated ions        simulated fluor.      MIBI breast DCIS
    ============ ===================== ===================== =====================
    none         0.64 / 0.45 / 0.38    0.71 / 0.45 / 0.33    0.40 / 0.29 / 0.22
    z            0.78 / 0.48 / 0.36    0.83 / 0.44 / 0.34    0.48 / 0.35 / 0.23
    arcsine      0.67 / 0.58 / 0.42    0.69 / 0.56 / 0.40    0.42 / 0.35 / 0.25
    arcsine_z    0.79 / 0.60 / 0.41    0.86 / 0.61 / 0.45    0.48 / 0.44 / 0.29
    logit        0.67 / 0.72 / 0.48    0.69 / 0.69 / 0.49    0.39 / 0.42 / 0.29
    logit_z      0.81 / 0.71 / 0.62    0.82 / 0.71 / 0.50    0.45 / 0.38 / 0.33
    (expression) 0.47 / 0.36 / 0.32    0.65 / 0.68 / 0.57    0.23 / 0.28 / 0.24
    ============ ===================== ===================== =====================

    ``logit_z`` has the best mean; its worst case is Leiden at the lower resolution on DCIS (0.38,
    where ``arcsine_z`` has 0.44). ``arcsine_z`` comes close, and is better for k-means. The default
    was chosen on these data, out of ten variants.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> import nimbus_sd as nb
    >>> adata = ad.AnnData(np.array([[0.1, 0.0], [0.9, 1.0]], dtype="float32"))
    >>> nb.pp.transform_scores(adata)
    >>> adata.layers["transformed"].tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    check_adata(adata)
    if method not in METHODS or not 0 < eps < 0.5:
        msg = f"method={method!r}, eps={eps}; valid: {', '.join(map(repr, METHODS))}; in (0, 0.5)"
        raise InputError(msg)
    if key_added in ("X", layer) or not key_added or "/" in key_added:
        msg = f"key_added={key_added!r} can't be the layer for the result; name one other than layer="
        raise InputError(msg)
    if key_added in adata.uns and "method" not in adata.uns[key_added]:
        msg = f"uns[{key_added!r}] holds something else that would be lost; choose another key_added="
        raise InputError(msg)
    values = _checked(adata, layer)
    kind, _, standard = method.partition("_")
    if kind == "logit":
        values = np.clip(values, eps, 1 - eps)
        values = np.log(values) - np.log1p(-values)
    elif kind == "arcsine":
        values = np.arcsin(np.sqrt(values))
    record: dict[str, object] = {"method": method, "layer": layer or "X", "eps": float(eps)}
    if standard or kind == "z":
        mean, sd = values.mean(0), values.std(0)
        varies = np.ptp(values, axis=0) > 0  # the spread of equal values need not be exactly 0
        values = np.where(varies, (values - mean) / np.where(varies, sd, 1), 0)
        record |= {"mean": mean, "sd": np.where(varies, sd, 0)}
    result = values.astype(np.float32)
    adata.layers[key_added] = result
    adata.obsm[f"X_{key_added}"] = result
    adata.uns[key_added] = record


def _checked(adata: ad.AnnData, layer: str | None) -> np.ndarray:
    values = matrix(adata, layer)
    if not values.size:
        msg = f"the table is empty {adata.shape}; score at least one cell and marker first"
        raise InputError(msg)
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        wrong = [f"{adata.var_names[i]} ({n} cells)" for i, n in enumerate(bad.sum(0)) if n]
        msg = (
            f"{layer or 'X'} is NaN or outside [0, 1] in {', '.join(wrong[:8])}; valid: scores in [0, 1]. "
            "Name their layer with layer=, or drop these markers or cells"
        )
        raise InputError(msg)
    return values
