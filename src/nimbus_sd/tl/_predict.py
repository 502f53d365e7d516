"""The main job: score every cell and marker of a SpatialData object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anndata import AnnData
from spatialdata import SpatialData

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.cohort import as_cohort
from nimbus_sd._sdata.destination import destinations
from nimbus_sd._sdata.identity import active_client, homes_of
from nimbus_sd._sdata.maps import check_dtype
from nimbus_sd._sdata.model_kinds import POSITIVITY, check_kind
from nimbus_sd._sdata.run import Request, finished
from nimbus_sd._sdata.samples import resolve_samples
from nimbus_sd._sdata.sizes import bytes_of
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.engine.run import Runner
from nimbus_sd.engine.settings import PredictConfig, view_names
from nimbus_sd.models.loading import LoadedModel, load
from nimbus_sd.tl._predict_table import read_context, refine
from nimbus_sd.tl._results import Results, channels_of_tables, store_results

if TYPE_CHECKING:
    from distributed import Client


def predict(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    image: str | Mapping[str, str] | None = None,
    labels: str | Sequence[str] | None = None,
    channels: str | Sequence[str] = "auto",
    model: str | Path | LoadedModel = "nimbus-sd-s",
    mpp: float | None = None,
    normalization: Normalization | None = None,
    quantile: float | None = None,
    rule: str | None = None,
    views: int | Sequence[str] = 1,
    score_std: bool = False,
    integrated_expression: bool = True,
    maps: str | None = None,
    maps_dtype: str = "float16",
    table: str = "nimbus",
    into: str | None = None,
    overwrite: bool = False,
    write: bool | str | Path = False,
    coordinate_system: str | None = None,
    exclude: str = NOT_MARKERS,
    context: AnnData | None = None,
    tile: int | None = None,
    batch_size: int | None = None,
    device: str | Sequence[str] = "auto",
    precision: str = "auto",
    n_threads: int = 2,
    memory: int | str | None = None,
    compiled: bool = False,
    client: Client | bool | None = None,
    resume: bool = True,
    progress: bool = True,
) -> None:
    """Score with a network, for every cell and marker, whether the cell is positive.

    Images and labels are read lazily, tile by tile with reader threads. The scores
    equal one forward pass over the whole image: they do not depend on tile size,
    chunks, batch size or thread count. Like the normalisation, what counts as bright
    for a marker is taken from all cells of the call: predict a cohort together.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)`` of any real dtype (finite, ≥ 0) and labels
        ``(y, x)`` of any integer dtype, 0 = background; single- or multiscale, in
        memory or on disk. Several, as a list or ``{name: object}``, are one cohort: one
        normalisation, one table in each; the arguments hold for every one of them.
    image
        Name of the image, or ``{labels name: image name}`` for several samples. None
        pairs each labels element with the one image that overlaps it in a shared
        coordinate system.
    labels
        Name or names of labels; None takes all.
    channels
        ``"auto"`` leaves out DNA, histone, blank and background channels and says
        so; ``"all"``, or names.
    model
        A name of :func:`nimbus_sd.models.list`, a weights folder or file, or a loaded model.
    mpp
        µm per px of the image. None takes it from a transformation to
        ``"microns"``, else from ``sdata.attrs["nimbus_sd"]["mpp"]``.
    normalization
        From :func:`nimbus_sd.pp.normalization`; None fits it on these images.
    quantile, rule
        How to fit it; None takes what the model's card says.
    views
        Test-time views to average: 1, 8 (all symmetries of the square) or names
        among ``identity, flip_y, flip_x, rot180, transpose, rot90, rot270, antitranspose``.
    score_std
        Also store the standard deviation of the scores over the views.
    integrated_expression
        Also store the mean raw intensity.
    maps
        Base name of multiscale image elements for the full-resolution probabilities,
        written region by region; None keeps none. They are the network's, before a cell
        head has weighed them against the other cells.
    maps_dtype
        ``"float16"``, or ``"uint8"``: 255 is a probability of 1.
    table
        Name of the table to write.
    into
        Name of an existing table that annotates the same labels: scores go to its
        ``layers["nimbus"]``, joined on instance id, their provenance to
        ``uns["nimbus"]``, and nothing else in it changes.
    overwrite
        Replace a table, layer or map of that name.
    write
        True also persists table and maps in the object's zarr store, atomically. A folder or
        URL gets a small SpatialData store with them for every object, named like the object's
        own (``results/slide1.zarr``), and leaves that as it is.
    coordinate_system
        Where elements are compared and positions are given; None takes one they share.
    exclude
        Pattern of channel names that ``"auto"`` leaves out.
    context
        Table of another run whose ``uns["nimbus"]["context"]`` says what is dim and bright
        for each marker, so that its cells and these are judged alike; with `normalization`
        of that run. None takes these cells. Models without a cell head don't use it.
    tile
        Side of a tile's core in model px (multiple of 16); None takes the largest
        that memory allows.
    batch_size
        Markers per forward pass; None finds it from memory.
    device
        ``"auto"`` (all GPUs, else the CPU), ``"cpu"``, ``"cuda:0"``, ``"mps"``, or several, which
        share the tiles: ``["cuda:0", "cuda:1"]``.
    precision
        ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where it is native.
    n_threads
        Reader threads per device.
    memory
        What the network's activations may take: bytes, or ``"4 GiB"``. None takes a third of
        what is free. The largest tile that fits is used.
    compiled
        Let ``torch.compile`` rewrite the network: the first tile then takes a minute or more.
    client
        :class:`dask.distributed.Client` whose workers compute the tiles; None takes the active
        one, if there is one; False computes in this process all the same. Workers read the
        images themselves, so those must lie in a store that they can reach.
    resume
        Go on where an interrupted run with the same inputs, weights and settings stopped.
        Finished tiles are kept beside the (first) store, in ``.<store>.nimbus-runs``, until
        the run has succeeded: that of `write`, if a folder is given. For stores behind a URL
        they are kept in the cache folder (``$NIMBUS_SD_CACHE``). Objects in memory keep none.
    progress
        Show progress bars with rate and remaining time.

    Returns
    -------
    None; writes ``sdata[table]`` (of each object), an annotating table with

    - ``X`` float32 ``(n_cells, n_markers)``: scores in [0, 1];
    - ``obs``: ``region``, ``instance_id`` (int64), ``area_px``, ``area_um2``, ``n_tiles``
      (``area_px`` counts pixels of the finer of the two grids);
    - ``obsm["spatial"]``: centroids (x, y) in the coordinate system;
    - ``var``: ``scale``, ``n_saturated``, ``qc``;
    - ``layers["integrated_expression"]`` (image units), ``layers["score_std"]``;
    - ``uns["nimbus"]``: what is needed to repeat the run.

    Raises
    ------
    InputError
        If elements can't be paired or aligned, the pixel size is unknown, pixels are
        negative or not finite, labels are empty or floats, the table exists, the device is
        not there, or another run works on the store. Nothing is written then.
    ElementNotFoundError
        If an element, channel or model does not exist.
    WeightsError, OfflineError
        If the weights can't be used or fetched.
    DataError
        If a chunk of an image can't be read; finished tiles are kept.
    ClusterError
        If the cluster has no workers, or they die of a tile; finished tiles are kept.

    References
    ----------
    Rumberger, Greenwald et al. (2025), *Automated classification of cellular expression in
    multiplexed imaging data with Nimbus*.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.tl.predict(sdata, progress=False)
    >>> sdata["nimbus"].X.dtype
    dtype('float32')
    """
    config = PredictConfig(
        views=view_names(views),
        tile=tile,
        batch_size=batch_size,
        n_threads=n_threads,
        device=device if isinstance(device, str) else tuple(device),
        precision=precision,
        per_view=score_std,
        intensity=integrated_expression and into is None,
        memory=bytes_of(memory),
        compiled=compiled,
    )
    check_kind(model, POSITIVITY)
    if score_std and into is not None:
        msg = "score_std=True writes a layer of a new table; leave it out with into=, or leave into= out"
        raise InputError(msg)
    check_dtype(maps_dtype)
    if normalization is not None:
        _check_normalization(normalization, quantile, rule)
    objects = as_cohort(sdata)
    targets = destinations(objects, write)
    for target in targets.values():
        target.check(table, into, overwrite=overwrite)
    if into is not None and channels == "auto":
        channels = channels_of_tables(objects, into, image, labels, coordinate_system)
    samples = resolve_samples(
        objects,
        image=image,
        labels=labels,
        channels=channels,
        coordinate_system=coordinate_system,
        mpp=mpp,
        exclude=exclude,
    )
    results = [
        Results(targets[name], samples.part(which), which, maps=maps, table=table, into=into)
        for name, which in samples.objects().items()
    ]
    for each in results:
        each.check(overwrite=overwrite)
    loaded = load(model)
    if loaded.head is not None:
        config = replace(config, intensity=True)
    known = None if context is None else read_context(context, samples.channels)
    runner = Runner.make(loaded, config, active_client(client))
    for s in samples.samples:
        runner.plan(s.sample)
    request = Request(
        samples,
        runner,
        normalization=normalization,
        quantile=loaded.card.quantile if quantile is None else quantile,
        rule=rule or loaded.card.rule,
        maps=maps_dtype if maps is not None else None,
        progress=progress,
    )
    # maps that are not written stay where they were computed, so nothing could be resumed
    keeps = maps is None or all(t.persists for t in targets.values())
    homes = homes_of([t.store for t in targets.values()], samples) if keeps else []
    with finished(request, homes, resume=resume) as outcome:
        cells, known = refine(loaded, samples, outcome.cells, outcome.normalization, known)
        store_results(
            results,
            runner,
            replace(outcome, cells=cells),
            context=known,
            intensity=integrated_expression,
        )


def _check_normalization(normalization: object, quantile: float | None, rule: str | None) -> None:
    if not isinstance(normalization, Normalization):
        msg = (
            f"normalization is a {type(normalization).__name__}; pass what nb.pp.normalization returns, or "
            "nb.pp.Normalization.load(path)"
        )
        raise InputError(msg)
    if quantile is not None or rule is not None:
        msg = "normalization= is fitted already: leave quantile= and rule= out, or leave normalization= out"
        raise InputError(msg)
