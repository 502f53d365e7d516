"""The baseline everyone uses: summaries of each channel over each cell, streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd._sdata.samples import resolve_samples
from nimbus_sd._sdata.table import build_table
from nimbus_sd._sdata.target import check_new_name
from nimbus_sd.engine.expression import STATISTICS, n_blocks, summarise


def integrated_expression(
    sdata: SpatialData,
    *,
    image: str | Mapping[str, str] | None = None,
    labels: str | Sequence[str] | None = None,
    channels: str | Sequence[str] = "all",
    statistics: Sequence[str] = ("mean",),
    quantiles: Sequence[float] = (),
    coordinate_system: str | None = None,
    mpp: float | None = None,
    table: str = "integrated_expression",
    exclude: str = NOT_MARKERS,
    overwrite: bool = False,
    n_threads: int = 2,
    progress: bool = True,
) -> None:
    """Average (sum, extremes, quantiles) of raw intensities per cell and channel.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)`` and labels ``(y, x)``; read lazily, each
        chunk once.
    image, labels, coordinate_system, mpp
        As in :func:`nimbus_sd.tl.predict`; the pixel size is optional here.
    channels
        ``"all"``, ``"auto"`` or names.
    statistics
        Any of ``"mean"``, ``"sum"``, ``"min"``, ``"max"``; the first one becomes ``X``.
    quantiles
        In [0, 1]; exact, also for cells that cross blocks.
    table
        Name of the table.
    exclude
        Pattern of channel names that ``"auto"`` leaves out.
    overwrite
        Replace a table of that name.
    n_threads
        Reader threads.
    progress
        Show a progress bar.

    Returns
    -------
    None; writes ``sdata[table]``: ``X`` float32 ``(n_cells, n_channels)``, image
    units, of the first statistic; the others in ``layers["sum"]``, ...,
    quantiles in ``layers["q0.5"]``; ``obs`` and ``obsm["spatial"]`` as in
    :func:`nimbus_sd.tl.predict`.

    Raises
    ------
    InputError
        If elements can't be paired, pixels are not finite and ≥ 0, labels are
        empty, or the table exists.
    ElementNotFoundError
        If a name does not exist.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.pp.integrated_expression(sdata, statistics=("mean", "max"), progress=False)
    >>> list(sdata["integrated_expression"].layers)
    ['max']
    """
    statistics = check_statistics(statistics, quantiles)
    check_new_name(sdata, table, kind="tables", argument="table", overwrite=overwrite)
    found = resolve_samples(
        sdata,
        image=image,
        labels=labels,
        channels=channels,
        coordinate_system=coordinate_system,
        mpp=mpp,
        exclude=exclude,
        need_mpp=False,
    )
    total = sum(n_blocks(s.sample) for s in found.samples)
    with progress_bar(total, description="integrated expression", unit="block", show=progress) as advance:
        results = [
            summarise(
                s.sample,
                found.channels,
                extremes=bool({"min", "max"} & set(statistics)),
                quantiles=tuple(quantiles),
                n_threads=n_threads,
                on_progress=advance,
            )
            for s in found.samples
        ]
    named = {name: [r.statistic(name) for r in results] for name in statistics}
    named |= {f"q{q:g}": [r.quantiles[:, :, i] for r in results] for i, q in enumerate(quantiles)}
    first = statistics[0]
    sdata[table] = _table(found.samples, results, named, first, found.channels)


def _table(
    samples: Sequence, results: Sequence, named: dict, first: str, channels: Sequence[str]
) -> ad.AnnData:
    return build_table(
        samples,
        [r.cells() for r in results],
        x=named[first],
        layers={name: arrays for name, arrays in named.items() if name != first},
        var=pd.DataFrame(index=list(channels)),
        uns={"integrated_expression": {"statistic": first}},
    )


def check_statistics(statistics: Sequence[str], quantiles: Sequence[float]) -> list[str]:
    """Names of the statistics; raise InputError for unknown ones and quantiles that are none."""
    names = [statistics] if isinstance(statistics, str) else list(statistics)
    unknown = [s for s in names if s not in STATISTICS]
    if unknown or not names or len(set(names)) < len(names):
        msg = f"statistics={names}: give each once; valid: {', '.join(STATISTICS)}"
        raise InputError(msg)
    if not isinstance(quantiles, Sequence):
        msg = f"quantiles={quantiles!r} must be a sequence, for instance (0.5, 0.9)"
        raise InputError(msg)
    bad = [q for q in quantiles if not (np.isfinite(q) and 0 <= q <= 1)]
    if bad:
        msg = f"quantiles={bad} must lie in [0, 1], for instance (0.5, 0.9)"
        raise InputError(msg)
    return names
