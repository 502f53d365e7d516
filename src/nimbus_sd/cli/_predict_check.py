"""What can be said against a prediction before it is made: names that are taken, elements that don't fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def check(
    objects: SpatialData | Sequence[SpatialData],
    elements: Mapping[str, Any],
    *,
    table: str,
    into: str | None,
    maps: str | None,
    maps_dtype: str,
    overwrite: bool,
    write: bool | Path,
    quantile: float | None,
    rule: str | None,
    context: AnnData | None,
) -> str | Sequence[str]:
    """Raise unless :func:`nimbus_sd.tl.predict` could store its results; nothing is made.

    Parameters
    ----------
    objects
        One, or those of a cohort.
    elements
        Arguments that choose images, labels and channels.
    table, into, maps, maps_dtype, overwrite, write, quantile, rule, context
        As of :func:`nimbus_sd.tl.predict`.

    Returns
    -------
    The channels that it would score, as its argument: `into` a table, those of the table.
    """
    from nimbus_sd._sdata.cohort import as_cohort
    from nimbus_sd._sdata.destination import destinations
    from nimbus_sd._sdata.maps import check_dtype
    from nimbus_sd._sdata.samples import resolve_samples
    from nimbus_sd.engine.normalization import check_rule
    from nimbus_sd.tl._predict_table import read_context
    from nimbus_sd.tl._results import Results, channels_of_tables

    check_dtype(maps_dtype)
    check_rule(0.5 if quantile is None else quantile, rule or "dataset")
    cohort, chosen = as_cohort(objects), dict(elements)
    targets = destinations(cohort, write)
    for target in targets.values():
        target.check(table, into, overwrite=overwrite)
    if into is not None and chosen["channels"] == "auto":
        chosen["channels"] = channels_of_tables(
            cohort, into, chosen["image"], chosen["labels"], chosen["coordinate_system"]
        )
    samples = resolve_samples(cohort, **chosen)
    if context is not None:
        read_context(context, samples.channels)
    for name, which in samples.objects().items():
        results = Results(targets[name], samples.part(which), which, maps=maps, table=table, into=into)
        results.check(overwrite=overwrite)
    channels: str | Sequence[str] = chosen["channels"]
    return channels
