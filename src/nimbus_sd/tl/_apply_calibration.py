"""Use a calibration on this or another table."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._sdata.truth import check_adata, matrix
from nimbus_sd.arrays.calibration import Calibrator, call_cells

POOLED = "(all)"


def apply_calibration(
    adata: ad.AnnData,
    calibration: ad.AnnData | Mapping[str, Any],
    *,
    layer: str | None = None,
    key_added: str = "calibrated",
    key_call: str = "call",
) -> None:
    """Calibrate scores with what :func:`nimbus_sd.tl.calibrate` found on labelled cells.

    Scores must come from the same model and settings; nothing here can tell.

    Parameters
    ----------
    adata
        Table to write to.
    calibration
        Table that was calibrated, or its ``uns["calibration"]``.
    layer
        Layer with the scores; None takes ``X``.
    key_added
        Layer for the calibrated scores.
    key_call
        Layer for the calls, written if the calibration has an error rate.

    Returns
    -------
    None; writes ``layers[key_added]`` float32 in [0, 1] (NaN where the score is NaN),
    ``layers[key_call]`` float32 1 positive, 0 negative, NaN uncertain, and
    ``uns["calibration"]``. Calls of the calibration that `key_added` holds so far are dropped
    unless they are replaced. Markers or groups that the calibration does not know get
    the fit over all of them, said in a warning.

    Raises
    ------
    ElementNotFoundError
        If the layer or the column of ``obs`` does not exist.
    InputError
        If it is no calibration, scores leave [0, 1], or a layer would replace what it is made of.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> labelled = nb.datasets.simulated_tissue(n_fovs=1, shape=(192, 192), seed=1)
    >>> other = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128), seed=2)
    >>> for sdata in (labelled, other):
    ...     nb.tl.predict(sdata, channels=["CD45", "VIM"], progress=False)
    >>> truth = labelled["truth"][:, ["CD45", "VIM"]]
    >>> report = nb.tl.calibrate(labelled["nimbus"], truth, min_cells=20)
    >>> nb.tl.apply_calibration(other["nimbus"], labelled["nimbus"])
    >>> other["nimbus"].layers["calibrated"].shape == other["nimbus"].shape
    True
    """
    check_adata(adata)
    if isinstance(calibration, ad.AnnData):
        calibration = calibration.uns.get("calibration", {})
    if not isinstance(calibration, Mapping) or not {"by", "groups"} <= set(calibration):
        msg = "no calibration there: pass a table after nb.tl.calibrate, or its uns['calibration']"
        raise InputError(msg)
    groups = _groups(calibration["groups"])
    check_keys(layer, key_added, key_call if "low" in groups[POOLED] else None)
    scores = checked_scores(adata, layer)
    names, codes = group_codes(adata, str(calibration["by"]))
    strange = [name for name in names if name not in groups]
    if strange:
        warnings.warn(
            f"{len(strange)} groups of {calibration['by']!r} are not in the calibration and get the fit over "
            f"all: {', '.join(strange[:8])}",
            NimbusWarning,
            stacklevel=2,
        )
    calibrated, calls = apply_groups(scores, codes, names, groups)
    write_layers(adata, {key_added: calibrated, **({} if calls is None else {key_call: calls})}, key_added)
    adata.uns["calibration"] = dict(calibration) | {
        "layer": layer or "X",
        "key_added": key_added,
        "key_call": "" if calls is None else key_call,
    }


def check_keys(layer: str | None, key_added: str, key_call: str | None, *more: str) -> None:
    """Raise unless the layers to write are different ones, and none of those that are read.

    Parameters
    ----------
    layer
        With the scores.
    key_added, key_call
        To write; None if there are no calls.
    *more
        Others that are read.

    Raises
    ------
    InputError
        Otherwise.
    """
    taken = ("X", "integrated_expression", "nimbus", "", *([] if layer is None else [layer]), *more)
    for name, key in (("key_added", key_added), ("key_call", key_call)):
        if key is not None and (key in taken or "/" in key):
            msg = f"{name}={key!r} is no name, or that of scores, intensities or labels; choose another"
            raise InputError(msg)
    if key_added == key_call:
        msg = f"key_added={key_added!r} and key_call={key_call!r} are one layer; give them two names"
        raise InputError(msg)


def write_layers(adata: ad.AnnData, layers: Mapping[str, np.ndarray], key_added: str) -> None:
    """Write the layers; calls that were made with what `key_added` held before are gone."""
    before = adata.uns.get("calibration", {})
    old = before.get("key_call", "")
    if before.get("key_added") == key_added and old in adata.layers and old not in layers:
        del adata.layers[old]
    for name, values in layers.items():
        adata.layers[name] = values


def _groups(text: object) -> dict[str, dict[str, Any]]:
    """Fits by group, the pooled one among them."""
    try:
        groups: dict[str, dict[str, Any]] = json.loads(str(text))
        for fit in (groups[POOLED], *groups.values()):
            Calibrator.from_dict(fit)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        msg = f"the calibration's groups can't be read ({error}); take what nb.tl.calibrate wrote"
        raise InputError(msg) from error
    return groups


def apply_groups(
    scores: np.ndarray, codes: np.ndarray, names: list[str], groups: Mapping[str, Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Calibrated scores, and calls if the groups have limits, float32 of the scores' shape."""
    out = np.full(scores.shape, np.nan, dtype=np.float32)
    calls = np.full(scores.shape, np.nan, dtype=np.float32) if "low" in groups[POOLED] else None
    for code in np.unique(codes):
        name = names[code] if code >= 0 else POOLED
        found = groups.get(name, groups[POOLED])
        mask = codes == code
        values = Calibrator.from_dict(found).apply(scores[mask])
        out[mask] = values
        if calls is not None:
            # before rounding to float32: limits are calibrated scores of labelled cells
            calls[mask] = call_cells(values, found["low"], found["high"])
    return out, calls


def group_codes(adata: ad.AnnData, by: str) -> tuple[list[str], np.ndarray]:
    """Names of the groups and the group of every cell and marker, ``(n_obs, n_vars)``, -1 none.

    Raises
    ------
    ElementNotFoundError
        If `by` is neither ``"marker"`` nor a column of ``obs``.
    """
    if by == "marker":
        names = list(map(str, adata.var_names))
        return names, np.broadcast_to(np.arange(adata.n_vars), adata.shape)
    if by not in adata.obs:
        msg = f"obs has no column {by!r}; valid: 'marker', {', '.join(map(repr, adata.obs))}"
        raise ElementNotFoundError(msg)
    column = adata.obs[by].astype("category").cat.remove_unused_categories()
    names = [str(c) for c in column.cat.categories]
    return names, np.broadcast_to(column.cat.codes.to_numpy(np.int64)[:, None], adata.shape)


def checked_scores(adata: ad.AnnData, layer: str | None) -> np.ndarray:
    """Scores, float64 ``(n_obs, n_vars)``.

    Raises
    ------
    ElementNotFoundError
        If there is no such layer.
    InputError
        If scores leave [0, 1].
    """
    scores = matrix(adata, layer)
    known = scores[~np.isnan(scores)]
    if known.size and (known.min() < 0 or known.max() > 1):
        msg = (
            f"{layer or 'X'} holds values from {known.min():.3g} to {known.max():.3g}; only scores in "
            "[0, 1] can be calibrated; name their layer with layer="
        )
        raise InputError(msg)
    return scores
