"""Ask a network from outside what each marker adds to each cell's embedding."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.cohort import location_of
from nimbus_sd._sdata.embedding_rows import EmbeddingRows, read_rows
from nimbus_sd._sdata.embedding_run import Embedded, EmbedRequest, embedded
from nimbus_sd._sdata.identity import active_client, homes_for
from nimbus_sd._sdata.patch_run import patch_config
from nimbus_sd._sdata.persist import persist_table
from nimbus_sd._sdata.shallow import shallow_with
from nimbus_sd._sdata.target import check_prediction_target
from nimbus_sd.arrays.agreement import spearman_columns, spearman_rows
from nimbus_sd.engine.embedding.attribution import METHODS
from nimbus_sd.engine.embedding.run import EmbedRunner
from nimbus_sd.models.channelwise import ChannelwiseNet
from nimbus_sd.models.embedding import EmbeddingModel, load_embedding

if TYPE_CHECKING:
    from distributed import Client

UNS = "channel_attribution"


def channel_attribution(
    sdata: SpatialData,
    *,
    model: str | Path | EmbeddingModel | ChannelwiseNet,
    table: str = "embedding",
    method: str | Sequence[str] = METHODS,
    overwrite: bool = False,
    write: bool = False,
    batch_size: int | None = None,
    device: str | Sequence[str] = "auto",
    precision: str = "auto",
    n_threads: int = 2,
    memory: int | str | None = None,
    client: Client | bool | None = None,
    resume: bool = True,
    progress: bool = True,
) -> None:
    r"""Attribute every cell's embedding to its markers, and compare with their activations.

    The table's ``X`` tells what a marker adds by looking into the network. This looks at the network
    from outside, as could be done with any: it is a check on ``X``, not a better answer. Images
    are read again as :func:`nimbus_sd.tl.embed` read them, with the scales that it used.

    Parameters
    ----------
    sdata
        Object with the table and the images and centres that it was made from.
    model
        The model that made the table.
    table
        Name of a table from :func:`nimbus_sd.tl.embed`; its rows may be some of the cells.
    method
        One or both of

        - ``"occlusion"``: Euclidean distance that the embedding moves when the marker's channel
          is set to 0 (no signal);
        - ``"gradient_x_input"``: with :math:`s(x) = \lVert z(x) - z(0) \rVert`, the distance of a
          patch's embedding from that of an empty patch, the sum over the channel's pixels of
          :math:`|x \, \partial s / \partial x|`. Markers don't in general add up to s.
    overwrite
        Replace layers of these names.
    write
        True also persists the table in the object's zarr store, atomically.
    batch_size, device, precision, n_threads, memory, client, resume, progress
        As of :func:`nimbus_sd.tl.embed`.

    Returns
    -------
    None; writes into ``sdata[table]``

    - ``layers["occlusion"]``, ``layers["gradient_x_input"]`` float32 ``(n_cells, n_markers)``, ≥ 0;
    - ``uns["channel_attribution"]``: ``markers``, ``methods`` and for each method that the table has
      a layer of, its agreement with ``X``: ``spearman_per_marker``, Spearman's correlation over
      cells (NaN for a marker that is the same in all), its mean ``spearman_markers``, and
      ``spearman_cells``, the mean over cells of the correlation over markers.

    Raises
    ------
    InputError
        If the table is not one of embeddings, comes from another model, or names cells that are
        no longer there; if a layer exists. Nothing is written then.
    ElementNotFoundError
        If there is no such table, or what it was made from is gone.
    ClusterError
        If the cluster has no workers, or they die of a block; finished blocks are kept.

    References
    ----------
    Zeiler and Fergus (2014), *Visualizing and understanding convolutional networks*, for
    occlusion; Shrikumar et al. (2016), *Not just a black box: learning important features
    through propagating activation differences*, for gradient times input.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> from nimbus_sd.models.next_channel import NeXtChannel, NeXtChannelConfig
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128), channels=["CD3", "CD20"])
    >>> net = NeXtChannel(NeXtChannelConfig(markers=("CD3", "CD20")))
    >>> nb.tl.embed(sdata, model=net, progress=False)
    >>> nb.tl.channel_attribution(sdata, model=net, progress=False)
    >>> sorted(sdata["embedding"].layers)
    ['gradient_x_input', 'occlusion']
    """
    methods = methods_of(method)
    config = patch_config(
        batch_size=batch_size, n_threads=n_threads, device=device, precision=precision, memory=memory
    )
    loaded = load_embedding(model)
    rows = rows_to_ask(sdata, loaded, table=table, methods=methods, overwrite=overwrite, write=write)
    runner = EmbedRunner.make(loaded, config, active_client(client))
    homes = homes_for([location_of(sdata)], [s.image for s in rows.centers.samples])
    request = EmbedRequest(rows.centers, runner, rows.normalization, methods, progress)
    with embedded(request, homes, resume=resume) as outcome:
        layers = {name: _layer(rows, outcome, name) for name in methods}
        before = {m: rows.table.layers[m] for m in METHODS if m in rows.table.layers}
        record = _record(rows.table, before | layers)
        if write:
            changed = {
                "layers": {**rows.table.layers, **layers},
                "uns": {**rows.table.uns, UNS: record},
            }
            persist_table(sdata, table, overwrite=True, table=shallow_with(rows.table, **changed))
        for name, layer in layers.items():
            rows.table.layers[name] = layer
        rows.table.uns[UNS] = record


def rows_to_ask(
    sdata: SpatialData,
    model: EmbeddingModel,
    *,
    table: str,
    methods: Sequence[str],
    overwrite: bool,
    write: bool,
) -> EmbeddingRows:
    """Cells of the table with their images; raises unless their attributions can be stored."""
    rows = read_rows(sdata, table, model)
    _check_layers(rows.table, table, methods, overwrite=overwrite)
    # under a name that is taken in any case: only the store is asked about
    check_prediction_target(sdata, table, None, overwrite=True, write=write)
    return rows


def methods_of(method: str | Sequence[str]) -> tuple[str, ...]:
    """Names of methods, checked."""
    names = (method,) if isinstance(method, str) else tuple(method)
    if not names or len(set(names)) < len(names) or any(n not in METHODS for n in names):
        msg = f"method={method!r}; valid: one or both of {', '.join(map(repr, METHODS))}"
        raise InputError(msg)
    return names


def _check_layers(table: AnnData, name: str, methods: Sequence[str], *, overwrite: bool) -> None:
    taken = [m for m in methods if m in table.layers]
    if taken and not overwrite:
        msg = f"table {name!r} has layers {taken} already; pass overwrite=True to replace them"
        raise InputError(msg)


def _layer(rows: EmbeddingRows, outcome: Embedded, name: str) -> np.ndarray:
    """A method's values in the rows and columns of the table, float32."""
    out = np.empty(rows.table.shape, np.float32)
    for where, at, cells in zip(rows.where, rows.at, outcome.cells, strict=True):
        if len(where):
            out[where] = cells.means[name][at][:, rows.columns]
    return out


def _record(table: AnnData, layers: dict[str, np.ndarray]) -> dict[str, Any]:
    """What goes to uns: how far each method agrees with the activations."""
    activation = np.asarray(table.X)
    record: dict[str, Any] = {
        "markers": np.array(list(table.var_names), dtype=str),
        "methods": np.array(list(layers)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name, layer in layers.items():
        per_marker = spearman_columns(layer, activation)
        record[name] = {
            "spearman_per_marker": per_marker,
            "spearman_markers": _mean(per_marker),
            "spearman_cells": _mean(spearman_rows(layer, activation)),
        }
    return record


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
