"""``nb.tl.train_embedding``: a network that embeds cells, from images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata import embedding_training as training
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.models.embedding import EmbeddingModel


def train_embedding(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    image: str | Mapping[str, str] | None = None,
    centers: str | Sequence[str] | Mapping[str, str] | None = None,
    channels: str | Sequence[str] = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    config: str | EmbeddingTrainConfig = "small",
    architecture: str | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    normalization: Normalization | None = None,
    probe: str | None = None,
    table: str | None = None,
    mpp: float | None = None,
    coordinate_system: str | None = None,
    cache: int = 4 << 30,
    trainer: str = "plain",
    device: str = "auto",
    devices: int | str = 1,
    strategy: str = "auto",
    n_threads: int = 2,
    stop_at: int | None = None,
    progress: bool = True,
) -> EmbeddingModel:
    """Train an embedding of cells on the patches around their centres, without segmentation or labels.

    SimCLR: views of one patch (turned, scaled, flipped, brightened, with noise, cropped to
    several sides) shall lie near each other and far from those of other cells. The
    network keeps the markers apart until its last layer, so that
    :func:`nimbus_sd.tl.embed` can tell what each marker adds. Of every ten cells one, at
    most 2,000, is held out to judge the embedding (``log.csv``, ``model.card.metrics``).

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)`` and cell centres; or several, as a list or by name.
    image
        Name of the image, or ``{element of the centres: image}``; None pairs by overlap.
    centers
        Labels (their centroids), points or shapes, or ``{element: image}``; None takes the
        labels if there are any, else the points, else the shapes.
    channels
        Markers: ``"auto"`` (as :func:`nimbus_sd.tl.predict`), ``"all"`` or names.
    epochs, batch_size, seed
        Instead of the configuration's. An epoch sees every cell once; of ``"paper"`` and
        ``"cim"`` it is one batch, as the papers count. Rates follow the batch size.
    config
        ``"small"`` (two CPU cores, minutes for a few thousand cells), ``"paper"`` (a GPU),
        ``"cim"`` (the shallow network and its recipe), or an
        :class:`~nimbus_sd.engine.embedding.train_config.EmbeddingTrainConfig`.
    architecture
        Instead of the configuration's: ``"next_channel"``, ``"cim"``, or a dict with
        ``"kind"`` and its parameters, for instance ``{"kind": "next_channel", "width": 4}``.
    out
        Folder for the model (``weights.safetensors``, ``embedding.json``) and the run
        (``run/``: checkpoint, configuration, ``log.csv``). A run that was interrupted goes
        on there, and ends with the weights of one that was not. None keeps the model in
        memory alone.
    normalization
        Scales from :func:`nimbus_sd.pp.normalization`; None fits the 99.99th percentile of
        each marker on these images.
    probe
        Column of a table's obs with classes to judge the embedding by: balanced accuracy of
        their k nearest neighbours, over the held-out cells that have one. It does not change the
        training. None judges by how often two views of a patch find each other.
    table
        The table with that column, if several have it.
    mpp
        µm per px of the images, if they do not say; kept on the card.
    coordinate_system
        The one that images and centres share; None finds it.
    cache
        Bytes that patches may take in memory, 4 GiB by default. Where they are more, they are
        read again in every pass, and shuffled through a buffer of at most so many bytes.
    trainer
        ``"plain"``, or ``"lightning"`` (extra ``train``) for several GPUs.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:0"``, …
    devices, strategy
        Handed to lightning.
    n_threads
        Reader threads.
    stop_at
        Stop after this step; a later call goes on.
    progress
        Show progress bars.

    Returns
    -------
    Network and card; ``nb.tl.embed(sdata, model=model)`` uses it, and so does `out` in its place.

    Raises
    ------
    InputError
        If centres or markers can't be resolved, pixels are NaN or negative, there are fewer
        cells than `batch_size`, patches are larger than an image, `out` holds another run,
        or a loss is not finite.
    MissingExtraError
        If lightning is asked for and not installed.

    References
    ----------
    Gutwein et al. (2024), *Interpretable embeddings for segmentation-free single-cell analysis
    in multiplex imaging*; Chen et al. (2020), *A simple framework for contrastive learning of
    visual representations*.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128), channels=["CD3", "CD8"])
    >>> model = nb.tl.train_embedding(sdata, epochs=1, batch_size=8, out="mine", progress=False)
    >>> model.markers, model.card.crop, model.path.name
    (('CD3', 'CD8'), 18, 'mine')
    """
    settings = settings_for(config, architecture, epochs=epochs, batch=batch_size, seed=seed)
    request = training.EmbeddingRequest(
        image=image,
        centers=centers,
        channels=channels,
        coordinate_system=coordinate_system,
        mpp=mpp,
        probe=probe,
        table=table,
        normalization=normalization,
        cache=cache,
        n_threads=n_threads,
        progress=progress,
    )
    return training.train_embedding(
        sdata,
        request,
        settings,
        given_batch=batch_size is not None,
        out=None if out is None else Path(out),
        command=_command(settings, config, channels),
        trainer=trainer,
        device=device,
        devices=devices,
        strategy=strategy,
        stop_at=stop_at,
    )


def settings_for(
    config: str | EmbeddingTrainConfig, architecture: str | Mapping[str, Any] | None, **given: int | None
) -> EmbeddingTrainConfig:
    """The configuration with what the call changes."""
    if not isinstance(config, str | EmbeddingTrainConfig):
        msg = f"config={config!r}: pass a preset's name or an EmbeddingTrainConfig"
        raise InputError(msg)
    settings = EmbeddingTrainConfig.preset(config) if isinstance(config, str) else config
    if architecture is not None:
        parts = {"kind": architecture} if isinstance(architecture, str) else dict(architecture)
        settings = replace(settings, architecture=parts)
    changed: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    return replace(settings, **changed)


def _command(
    settings: EmbeddingTrainConfig, config: str | EmbeddingTrainConfig, channels: str | Sequence[str]
) -> str:
    """The call in a line; the whole configuration stands on the card too."""
    named = repr(config) if isinstance(config, str) else f"<{config.name}>"
    chosen = repr(channels) if isinstance(channels, str) else "[...]"
    return (
        f"nb.tl.train_embedding(..., channels={chosen}, config={named}, epochs={settings.epochs}, "
        f"batch_size={settings.batch}, seed={settings.seed})"
    )
