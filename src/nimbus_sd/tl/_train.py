"""``nb.tl.train``: a network from labelled cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialdata import SpatialData

from nimbus_sd._sdata.training import run_training
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.sources import TileSource
from nimbus_sd.models.loading import LoadedModel


def train(
    data: SpatialData | str | Path | TileSource,
    *,
    out: str | Path,
    labels_layer: str = "silver",
    table: str | None = None,
    config: str | Path | TrainConfig = "small",
    model: str | Path | LoadedModel | Mapping[str, Any] | None = None,
    validation: TileSource | None = None,
    mpp: float | None = None,
    trainer: str = "plain",
    device: str = "auto",
    precision: str = "auto",
    devices: int | str = 1,
    strategy: str = "auto",
    n_threads: int = 2,
    stop_at: int | None = None,
    licence: str = "",
    progress: bool = True,
) -> LoadedModel:
    """Train a network on labelled cells, or go on with a run that was interrupted.

    First on all labelled cells, then on those whose labels the network's own losses
    make believable. The weights with the best F1 on held-out fields are kept. A run
    that is resumed ends with the same weights as one that was not interrupted.

    Parameters
    ----------
    data
        Object with a table of labels (its tiles are written to ``out/tiles.zarr`` first), a
        store or folder of training tiles, or a
        :class:`~nimbus_sd.engine.training.sources.TileSource`.
    out
        Folder for the model (``weights.safetensors``, ``card.json``) and the run
        (``run/``: checkpoints, configuration, ``log.csv``, TensorBoard files).
    labels_layer
        Layer of the table with 1 positive, 0 negative, NaN undefined.
    table
        Name of the table; None takes the one that has the layer.
    config
        ``"small"`` (two CPU cores, minutes), ``"paper"`` (the published recipe, a GPU
        and days), a TOML file, or a :class:`~nimbus_sd.engine.training.config.TrainConfig`.
    model
        Weights to start from (a name of :func:`nimbus_sd.models.list`, folder, file,
        or loaded model), or the architecture of a new network; None takes the
        configuration's architecture.
    validation
        Tiles to choose the checkpoint by; None takes the validation fields of `data`.
    mpp
        µm per px of the object's images, if it does not say.
    trainer
        ``"plain"``, or ``"lightning"`` (extra ``train``) for several GPUs.
    device, precision
        As for :func:`nimbus_sd.tl.predict`.
    devices, strategy
        Handed to lightning. Where a launcher starts all processes at once, write the
        tiles before with :func:`nimbus_sd.pp.training_tiles`.
    n_threads
        Reader threads.
    stop_at
        Stop after this step; a later call goes on.
    licence
        Licence of the weights, for the card.
    progress
        Show progress bars.

    Returns
    -------
    The model, as ``nb.models.load(out)`` gives it; ``nb.tl.predict(sdata, model=out)`` uses it.

    Raises
    ------
    InputError
        If labels are missing or undefined, training and validation share a field, the
        folder holds another run, or a loss is not finite (naming the tile).
    MissingExtraError
        If lightning is asked for and not installed.

    References
    ----------
    Rumberger, Greenwald et al. (2025), *Automated classification of cellular expression in
    multiplexed imaging data with Nimbus*; Xiao et al. (2023), *ProMix: combating label noise
    via maximizing clean sample utility*.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> from dataclasses import replace
    >>> from nimbus_sd.engine.training.config import TrainConfig
    >>> from nimbus_sd.engine.training.simulated import SimulatedSource
    >>> config = replace(TrainConfig.small(), steps=2, robust_steps=0, batch=2, crop=64)
    >>> tiles = SimulatedSource(1, side=64, n_channels=2)
    >>> held_out = SimulatedSource(1, seed=9, side=64, n_channels=2)
    >>> model = nb.tl.train(tiles, validation=held_out, config=config, out="mine", progress=False)
    >>> model.card.name, model.path.name
    ('nimbus-small', 'weights.safetensors')
    """
    return run_training(
        data,
        Path(out),
        config=config,
        model=model,
        validation=validation,
        labels_layer=labels_layer,
        table=table,
        mpp=mpp,
        trainer=trainer,
        device=device,
        precision=precision,
        devices=devices,
        strategy=strategy,
        n_threads=n_threads,
        stop_at=stop_at,
        licence=licence,
        progress=progress,
        command=f"nb.tl.train(..., config={_named(config)}, labels_layer={labels_layer!r})",
    )


def _named(config: str | Path | TrainConfig) -> str:
    """A configuration in a word; the whole of it lies in the run's folder."""
    return f"<{config.name}>" if isinstance(config, TrainConfig) else repr(str(config))
