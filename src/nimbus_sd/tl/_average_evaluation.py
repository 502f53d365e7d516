"""The averages of the paper: per sample, then over a data set's samples, then over data sets."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.arrays.metrics import METRICS


def average_evaluation(
    frame: pd.DataFrame, *, by: str | Sequence[str] = (), dataset: str | None = "dataset"
) -> pd.DataFrame:
    """Average an evaluation as the paper does, each data set counting the same.

    A sample is one row of `frame`, in the paper one data set, marker and field. Metrics
    are averaged over the samples where they are defined, first within a data set, then
    over data sets; a sample without positive cells so counts only towards specificity.

    Parameters
    ----------
    frame
        From :func:`nimbus_sd.tl.evaluate` with ``by=("dataset", "marker", "region")``,
        or several such frames in one.
    by
        Columns to keep apart, for instance ``"tissue"`` or ``"marker"``.
    dataset
        Column of the data set; None takes all samples as one.

    Returns
    -------
    One row per combination of `by` and ``scores``: ``n_datasets``, ``n_samples``, the
    mean of each metric, and ``<metric>_samples``, the samples that it rests on; a
    metric that no sample defines is NaN with 0 samples.

    Raises
    ------
    ElementNotFoundError
        If a column does not exist.
    InputError
        If it is no frame of an evaluation.

    References
    ----------
    Rumberger, Greenwald et al. (2025), *Automated classification of cellular expression in
    multiplexed imaging data with Nimbus*, Methods.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(96, 96))
    >>> nb.tl.predict(sdata, channels=["CD45", "VIM"], progress=False)
    >>> found = nb.tl.evaluate(sdata["nimbus"], sdata["truth"], by=("marker", "region"),
    ...                        markers=["CD45", "VIM"], n_bootstrap=0)
    >>> nb.tl.average_evaluation(found, dataset=None)["n_samples"].tolist()
    [4]
    """
    if not isinstance(frame, pd.DataFrame) or not {"scores", *METRICS} <= set(frame):
        msg = "pass a frame of nb.tl.evaluate: it has the columns 'scores', 'f1', ..."
        raise InputError(msg)
    keep = [*([by] if isinstance(by, str) else by), "scores"]
    within = keep if dataset is None or dataset in keep else [*keep, dataset]
    missing = [c for c in within if c not in frame]
    if missing:
        msg = f"the frame has no column {missing}; it has {', '.join(frame)}; name {missing} in evaluate(by=)"
        raise ElementNotFoundError(msg)
    metrics = list(METRICS)
    per_dataset = frame.groupby(within, observed=True, sort=False)[metrics].mean()
    groups = frame.groupby(keep, observed=True, sort=False)
    out = per_dataset.groupby(level=keep, observed=True, sort=False).mean()
    out.insert(0, "n_samples", groups.size())
    n = per_dataset.groupby(level=keep, observed=True, sort=False).size()
    out.insert(0, "n_datasets", n)
    for name, count in groups[metrics].count().items():
        out[f"{name}_samples"] = count
    return out.reset_index()
