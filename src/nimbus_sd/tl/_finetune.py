"""``nb.tl.finetune``: a network that knows your stains a little better than the one it comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd._sdata.training import run_training
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.sources import TileSource
from nimbus_sd.models.loading import LoadedModel


def finetune(
    data: SpatialData | str | Path | TileSource,
    *,
    out: str | Path,
    labels_layer: str = "silver",
    table: str | None = None,
    model: str | Path | LoadedModel = "nimbus-sd-s",
    steps: int = 200,
    l2_sp: float = 1e-2,
    learning_rate: float | None = None,
    name: str | None = None,
    config: TrainConfig | None = None,
    mpp: float | None = None,
    device: str = "auto",
    precision: str = "auto",
    n_threads: int = 2,
    progress: bool = True,
) -> LoadedModel:
    """Fit a trained network to a few labelled fields, keeping it near what it was.

    Batch statistics and the cell head, if the model has one, stay as they are; a penalty
    on the squared distance from the first weights (L2-SP) holds the others. Silver
    labels can also make a network worse: compare on fields that were not trained on,
    with :func:`nimbus_sd.tl.evaluate`.

    Parameters
    ----------
    data
        Object with a table of labels, a store or folder of training tiles, or a
        source. All its training fields are used; if it has validation fields, they
        choose the checkpoint.
    out
        Folder for the model and the run, as for :func:`nimbus_sd.tl.train`.
    labels_layer, table
        Where the labels are: 1 positive, 0 negative, NaN undefined.
    model
        Where to start; its pixel size, normalisation and transform are taken over.
    steps
        Optimiser steps of `config.batch` tiles.
    l2_sp
        Weight of half the squared distance from the first weights; 0 lets them go.
    learning_rate
        At the start; None takes the configuration's.
    name
        Name on the card; None takes ``"<model>-finetuned"``.
    config
        Everything else; None takes ``TrainConfig.finetune()``.
    mpp
        µm per px of the object's images, if it does not say.
    device, precision, n_threads, progress
        As for :func:`nimbus_sd.tl.train`.

    Returns
    -------
    The new model; its card names the parent and the parent's hash.

    Raises
    ------
    InputError
        If labels are missing or undefined, or the tiles were made for another pixel
        size or normalisation than the model's.

    References
    ----------
    Li, Grandvalet and Davoine (2018), *Explicit inductive bias for transfer learning with
    convolutional networks*.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> from dataclasses import replace
    >>> from nimbus_sd.engine.training.config import TrainConfig
    >>> from nimbus_sd.engine.training.simulated import SimulatedSource
    >>> config = replace(TrainConfig.finetune(), batch=2, crop=64)
    >>> tiles = SimulatedSource(1, side=64, n_channels=2)
    >>> model = nb.tl.finetune(tiles, steps=2, config=config, out="mine", progress=False)
    >>> model.card.metrics["parent"]
    'nimbus-sd-s'
    """
    return run_training(
        data,
        Path(out),
        config=settings_for(
            config or TrainConfig.finetune(), steps=steps, l2_sp=l2_sp, learning_rate=learning_rate, name=name
        ),
        model=model,
        name=name,
        labels_layer=labels_layer,
        table=table,
        mpp=mpp,
        near=True,
        device=device,
        precision=precision,
        n_threads=n_threads,
        progress=progress,
        command=f"nb.tl.finetune(..., steps={steps}, l2_sp={l2_sp:g}, labels_layer={labels_layer!r})",
    )


def settings_for(
    config: TrainConfig, *, steps: int, l2_sp: float, learning_rate: float | None, name: str | None
) -> TrainConfig:
    """The configuration with what the call changes."""
    config = replace(config, steps=max(steps - config.robust_steps, 0), l2_sp=l2_sp, name=name or "finetuned")
    return config if learning_rate is None else replace(config, learning_rate=learning_rate)
