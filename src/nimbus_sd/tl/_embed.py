"""Embed every cell by a trained network, with no segmentation in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.embedding_plan import plan_embedding
from nimbus_sd._sdata.embedding_run import EmbedRequest, embedded, warn_of_mpp
from nimbus_sd._sdata.embedding_table import embedding_table
from nimbus_sd._sdata.identity import active_client, homes_for
from nimbus_sd._sdata.patch_run import patch_config, warn_of_empty
from nimbus_sd._sdata.samples import parts_of
from nimbus_sd.engine.embedding.run import EmbedRunner
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.models.channelwise import ChannelwiseNet
from nimbus_sd.models.embedding import EmbeddingModel
from nimbus_sd.tl._predict_table import keep

if TYPE_CHECKING:
    from distributed import Client

QUANTITIES = ("embedding", "activation")


def embed(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    model: str | Path | EmbeddingModel | ChannelwiseNet,
    image: str | Mapping[str, str] | None = None,
    centers: str | Sequence[str] | Mapping[str, str] | None = None,
    table: str = "embedding",
    key_added: str = "X_nextchannel",
    overwrite: bool = False,
    write: bool | str | Path = False,
    normalization: Normalization | None = None,
    mpp: float | None = None,
    coordinate_system: str | None = None,
    batch_size: int | None = None,
    device: str | Sequence[str] = "auto",
    precision: str = "auto",
    n_threads: int = 2,
    memory: int | str | None = None,
    client: Client | bool | None = None,
    resume: bool = True,
    progress: bool = True,
) -> None:
    """Embed every cell from the patch around its centre, and tell what each marker adds.

    No segmentation is needed: of labels only the centroids are used. Images are read lazily, in
    the order of their chunks and each once, but for chunks above 2,048 px, which are read in
    parts and decoded for each; every cell's patch goes through the network by itself:
    the result does not depend on blocks, batch size, threads, devices or workers.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)`` of any real dtype (finite, ≥ 0) and labels, points or
        shapes that say where cells are. Several, as a list or ``{name: object}``, are one
        cohort: one normalisation, one table in each.
    model
        What ``nb.tl.train_embedding`` returned, its folder, or a bare network, whose scales are then
        fitted on these images. Its channels are found by name, whatever their order in the
        image; further channels are ignored.
    image
        Name of the image, or ``{element of the centres: image}``; None pairs by overlap in a
        shared coordinate system.
    centers
        Name or names of labels (their centroids), points or shapes (their centroids), or
        ``{element: image}``; None takes the labels if there are any, else the points, else the
        shapes.
    table
        Name of the table to write.
    key_added
        Where the embedding goes in the table's ``obsm``.
    overwrite
        Replace a table of that name, with all that was added to it.
    write
        True also persists the table in the object's zarr store, atomically. A folder or URL gets
        a small SpatialData store with it for every object, see :func:`nimbus_sd.tl.predict`.
    normalization
        From :func:`nimbus_sd.pp.normalization`; None takes the scales of the model's training,
        which is what its features were learnt on.
    mpp
        µm per px of the image; None looks for it in the object. It is only compared with that of
        the model's training.
    coordinate_system
        Where elements are compared and positions are given; None takes one they share.
    batch_size
        Patches per forward pass; None finds it from memory.
    device
        ``"auto"`` (all GPUs, else the CPU), ``"cpu"``, ``"cuda:0"``, ``"mps"``, or several.
    precision
        ``"float32"``, which ``"auto"`` is too, or ``"bfloat16"``: faster on some devices, but it
        moves embeddings, faint markers most; by how much is in the record of the run.
    n_threads
        Reader threads per device.
    memory
        What the network's activations may take: bytes, or ``"4 GiB"``. None takes a third of
        what is free.
    client
        :class:`dask.distributed.Client` whose workers embed; None takes the active one, if there
        is one; False computes in this process all the same.
    resume
        Go on where an interrupted run with the same inputs, weights and settings stopped, see
        :func:`nimbus_sd.tl.predict`.
    progress
        Show progress bars with rate and remaining time.

    Returns
    -------
    None; writes ``sdata[table]`` (of each object), a table that annotates the centres, with

    - ``X`` float32 ``(n_cells, n_markers)``: activation of each marker, ≥ 0. It is the mean over
      the marker's features in the interpretability stage of their absolute values. These tell
      how far the features lie from those of an empty channel, on about a square-root scale
      (see the network's ``activations``): 0 for a marker without signal, and no marker changes
      another's;
    - ``obsm[key_added]`` float32 ``(n_cells, n)``: the embedding;
    - ``obs``, indexed ``<element>_<id>``: ``region``, ``instance_id`` (int64; label id or index),
      ``border`` (whether the patch reaches beyond the image and was filled by reflection),
      ``area_px`` for labels;
    - ``obsm["spatial"]``: centres (x, y) in the coordinate system;
    - ``var["scale"]``: intensity that maps to 1, image units;
    - ``uns["nimbus_embedding"]``: what is needed to repeat the run.

    Rows are in the order of label ids, or of the points or shapes.

    Raises
    ------
    InputError
        If an image lacks markers of the model, elements can't be paired, a patch is larger than
        the image, a centre lies outside it, pixels are negative or not finite, there is no cell,
        the table exists, centres are not in the store that ``write=True`` writes to, or another run
        works on the store. Nothing is written then.
    ElementNotFoundError
        If an element does not exist.
    WeightsError
        If the model can't be used.
    DataError
        If a chunk of an image can't be read; finished blocks are kept.
    ClusterError
        If the cluster has no workers, or they die of a block; finished blocks are kept.

    References
    ----------
    Gutwein et al. (2024), *Interpretable embeddings for segmentation-free single-cell analysis
    in multiplex imaging*.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> from nimbus_sd.models.next_channel import NeXtChannel, NeXtChannelConfig
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128), channels=["CD3", "CD20"])
    >>> net = NeXtChannel(NeXtChannelConfig(markers=("CD3", "CD20")))
    >>> nb.tl.embed(sdata, model=net, progress=False)
    >>> sdata["embedding"].obsm["X_nextchannel"].shape[1], list(sdata["embedding"].var_names)
    (256, ['CD3', 'CD20'])
    """
    config = patch_config(
        batch_size=batch_size, n_threads=n_threads, device=device, precision=precision, memory=memory
    )
    check_key(key_added)
    plan = plan_embedding(
        sdata,
        model=model,
        image=image,
        centers=centers,
        table=table,
        overwrite=overwrite,
        write=write,
        normalization=normalization,
        mpp=mpp,
        coordinate_system=coordinate_system,
    )
    loaded, found, targets = plan.model, plan.centers, plan.targets
    warn_of_empty(found)
    warn_of_mpp(loaded, found)
    runner = EmbedRunner.make(loaded, config, active_client(client))
    homes = homes_for([t.store for t in targets.values()], [s.image for s in found.samples])
    request = EmbedRequest(found, runner, normalization, QUANTITIES, progress)
    with embedded(request, homes, resume=resume) as outcome:
        made = {
            name: embedding_table(found, which, outcome, runner, key=key_added)
            for name, which in parts_of([s.of for s in found.samples]).items()
            if any(map(len, found.samples[which]))
        }
        for name, each in made.items():
            keep(targets[name], table, None, each, {}, {})


def check_key(key: object) -> None:
    """Raise :class:`InputError` unless an embedding can have this name."""
    if not isinstance(key, str) or not key or key == "spatial" or "/" in key:
        msg = f"key_added={key!r} can't name the embedding; valid: a name such as 'X_nextchannel'"
        raise InputError(msg)
