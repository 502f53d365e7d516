"""Cells that bind antibodies of no target: flag them and trust their scores less."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.cluster_edits import check_new_column
from nimbus_sd._sdata.truth import check_adata, matrix


def control_adjust(
    adata: ad.AnnData,
    controls: str | Sequence[str],
    *,
    layer: str | None = None,
    threshold: float = 0.5,
    strength: float = 1.0,
    key_added: str = "control_adjusted",
    flag: str = "control_positive",
) -> pd.DataFrame:
    """Flag cells positive for isotype or control antibodies and down-weight their scores.

    With ``c`` the largest score of a cell over the controls, its scores are multiplied by
    ``w = 1 - strength * max(0, c - threshold) / (1 - threshold)``: 1 up to the threshold,
    ``1 - strength`` at ``c = 1``. Controls themselves are left as they are.

    Parameters
    ----------
    adata
        Table with scores in [0, 1] of the controls too; :func:`nimbus_sd.tl.predict` leaves
        out channels named as blanks unless ``channels`` lists them.
    controls
        Channels of control antibodies.
    layer
        Layer with the scores; None takes ``X``, which is never changed.
    threshold
        Cells with a control above it are flagged, in [0, 1).
    strength
        In [0, 1]; 0 only flags.
    key_added
        Layer for the result.
    flag
        Column of ``obs`` for the flag.

    Returns
    -------
    One row per marker other than the controls: ``marker``, ``share_positive`` (scores above
    0.5), ``share_adjusted``, ``n_lost`` cells that are no longer positive, and
    ``share_flagged`` of the positive cells, which far above that of all cells says that
    the antibody stains what controls stain. Writes ``layers[key_added]`` float32,
    ``obs[flag]`` bool, ``obs[f"{flag}_score"]`` float32 ``c``, and ``uns[key_added]`` with
    the parameters and ``n_flagged``. A cell whose controls are all NaN keeps its scores.

    Raises
    ------
    ElementNotFoundError
        If the layer or a control does not exist.
    InputError
        If there is no control or nothing but controls, one is NaN throughout, scores leave
        [0, 1], or a parameter is out of range. Nothing is written then.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> scores = np.array([[0.8, 0.1], [0.8, 0.75]], dtype="float32")
    >>> adata = ad.AnnData(scores, var=pd.DataFrame(index=["CD3", "IgG"]))
    >>> report = nb.tl.control_adjust(adata, ["IgG"])
    >>> adata.layers["control_adjusted"][:, 0].round(2).tolist()
    [0.800000011920929, 0.4000000059604645]
    """
    check_adata(adata)
    _check_parameters(adata, threshold, strength, layer, key_added, flag)
    columns = _columns(adata, controls)
    scores = matrix(adata, layer)
    known = scores[~np.isnan(scores)]
    if known.size and (known.min() < 0 or known.max() > 1):
        msg = (
            f"{layer or 'X'} holds values from {known.min():.3g} to {known.max():.3g}; valid: scores in "
            "[0, 1]; name their layer with layer="
        )
        raise InputError(msg)
    empty = [str(adata.var_names[i]) for i in columns if adata.n_obs and np.isnan(scores[:, i]).all()]
    if empty:
        msg = f"{layer or 'X'}: {', '.join(empty)} is NaN in all cells; leave it out of controls="
        raise InputError(msg)
    c = np.fmax.reduce(scores[:, columns], axis=1)
    flagged = c > threshold
    weight = 1 - strength * np.clip(np.nan_to_num(c) - threshold, 0, None) / (1 - threshold)
    others = np.setdiff1d(np.arange(adata.n_vars), columns)
    out = scores.copy()
    out[:, others] *= weight[:, None]
    report = _report(adata, others, scores[:, others] > 0.5, out[:, others] > 0.5, flagged)
    adata.layers[key_added] = out.astype(np.float32)
    adata.obs[flag] = flagged
    adata.obs[f"{flag}_score"] = c.astype(np.float32)
    adata.uns[key_added] = {
        "controls": np.array([str(adata.var_names[i]) for i in columns], dtype=object),
        "layer": layer or "X",
        "threshold": float(threshold),
        "strength": float(strength),
        "n_flagged": int(flagged.sum()),
    }
    return report


def _report(
    adata: ad.AnnData, others: np.ndarray, before: np.ndarray, after: np.ndarray, flagged: np.ndarray
) -> pd.DataFrame:
    n = max(adata.n_obs, 1)
    positive = before.sum(0)
    return pd.DataFrame(
        {
            "marker": [str(adata.var_names[i]) for i in others],
            "share_positive": positive / n,
            "share_adjusted": after.sum(0) / n,
            "n_lost": (before & ~after).sum(0),
            "share_flagged": (before & flagged[:, None]).sum(0) / np.maximum(positive, 1),
        }
    )


def _check_parameters(
    adata: ad.AnnData, threshold: float, strength: float, layer: str | None, key_added: str, flag: str
) -> None:
    if not (0 <= threshold < 1 and 0 <= strength <= 1):
        msg = f"threshold={threshold}, strength={strength}; valid: in [0, 1), in [0, 1]"
        raise InputError(msg)
    if key_added in ("X", layer) or not key_added:
        msg = f"key_added={key_added!r} is where the scores come from; name another layer for the result"
        raise InputError(msg)
    if key_added in adata.uns and "controls" not in adata.uns[key_added]:
        msg = f"uns[{key_added!r}] holds something else that would be lost; choose another key_added="
        raise InputError(msg)
    check_new_column(adata, flag)


def _columns(adata: ad.AnnData, controls: str | Sequence[str]) -> list[int]:
    given = list(dict.fromkeys([controls] if isinstance(controls, str) else map(str, controls)))
    names = list(map(str, adata.var_names))
    missing = [name for name in given if name not in names]
    if missing:
        msg = (
            f"controls= names {', '.join(missing)}, not in the table; valid: {', '.join(names)}. "
            "nb.tl.predict scores a control if its channels= lists it"
        )
        raise ElementNotFoundError(msg)
    if not given or len(given) == len(names):
        msg = f"controls={given} leaves {len(names) - len(given)} of {len(names)} markers; name some, not all"
        raise InputError(msg)
    return [names.index(name) for name in given]
