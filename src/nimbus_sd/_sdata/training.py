"""From labelled objects, tile stores and names of models to a training run and its model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.tile_format import KIND
from nimbus_sd._sdata.tile_reader import TileStore
from nimbus_sd._sdata.tile_store import TileRequest, write_tiles
from nimbus_sd._sdata.writable import check_model_folder
from nimbus_sd.engine.device import resolve_device, resolve_precision
from nimbus_sd.engine.training.array_source import INDEX_FILE, ArraySource
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.export import check_card, describe_data, export
from nimbus_sd.engine.training.loop import TrainResult, fit, last_step
from nimbus_sd.engine.training.sources import SplitSource, TileSource
from nimbus_sd.models.card import ModelCard
from nimbus_sd.models.loading import LoadedModel, load

log = logging.getLogger("nimbus_sd")

TRAINERS = ("plain", "lightning")
TILES, RUN = "tiles.zarr", "run"


def run_training(
    data: SpatialData | str | Path | TileSource,
    out: Path,
    *,
    config: str | Path | TrainConfig,
    model: str | Path | LoadedModel | Mapping[str, Any] | None,
    labels_layer: str,
    table: str | None,
    command: str,
    validation: TileSource | None = None,
    name: str | None = None,
    mpp: float | None = None,
    near: bool = False,
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
    """Open tiles and weights, train, export; see :func:`nimbus_sd.tl.train`.

    Parameters
    ----------
    near
        Fine-tune: every field of an object is trained on, none held out; the model's cell
        head stays, and its name is the parent's with ``-finetuned``.
    name
        Name on the card of a fine-tuned model.
    """
    if trainer not in TRAINERS:
        msg = f"trainer={trainer!r}; valid: {', '.join(TRAINERS)}"
        raise InputError(msg)
    check_model_folder(out)
    settings = read_config(config)
    last_step(settings, stop_at)  # wrong arguments are said before tiles are written
    resolve_precision(precision, resolve_device(device))
    settings, start = start_from(settings, model)
    parent = None if start is None else start.card
    if parent is not None and near:
        settings = replace(settings, name=name or f"{parent.name}-finetuned")
    source = open_tiles(
        data,
        out / TILES,
        labels_layer=labels_layer,
        table=table,
        mpp=mpp,
        card=parent or ModelCard(name=settings.name),
        all_fields=near,
        n_threads=n_threads,
        progress=progress,
    )
    train, held = split(source, validation)
    if parent is not None and (differ := check_card(parent, train.preprocessing)):
        msg = f"the tiles don't fit model {parent.name!r} ({'; '.join(differ)}); make them with its settings"
        raise InputError(msg)
    side = min(train.tile(0).image.shape)
    if settings.crop > side:
        log.warning("crop=%d is larger than the tiles: whole tiles of %d px are used", settings.crop, side)
        settings = replace(settings, crop=0)
    options: dict[str, Any] = {
        "out": out / RUN,
        "device": device,
        "precision": precision,
        "weights": None if start is None else start.net.state_dict(),
        "n_threads": n_threads,
        "stop_at": stop_at,
        "progress": progress,
    }
    result: TrainResult
    if trainer == "lightning":
        from nimbus_sd.engine.training.lightning import fit_lightning

        result = fit_lightning(train, held, settings, devices=devices, strategy=strategy, **options)
    else:
        result = fit(train, held, settings, **options)
    return export(
        result,
        out,
        preprocessing=train.preprocessing,
        training_data=describe_data(train),
        command=command,
        parent=parent,
        # few steps near the parent leave its head valid; training anew does not
        head=start.head if near and start is not None else None,
        licence=licence,
    )


def read_config(config: str | Path | TrainConfig) -> TrainConfig:
    """A configuration from a preset's name, a TOML file, or itself.

    Raises
    ------
    InputError
        If it is neither.
    """
    if isinstance(config, TrainConfig):
        return config
    if isinstance(config, str) and config in TrainConfig.PRESETS:
        return TrainConfig.preset(config)
    path = Path(config)
    if not path.is_file():
        msg = f"config={str(config)!r} is no preset ({', '.join(TrainConfig.PRESETS)}) and no file"
        raise InputError(msg)
    return TrainConfig.from_toml(path)


def start_from(
    config: TrainConfig, model: str | Path | LoadedModel | Mapping[str, Any] | None
) -> tuple[TrainConfig, LoadedModel | None]:
    """The configuration with the model's architecture and transform, and the model if it has weights."""
    if model is None:
        return config, None
    if isinstance(model, Mapping):
        return replace(config, architecture=dict(model)), None
    loaded = load(model)
    card = loaded.card
    return replace(config, architecture=dict(card.architecture), transform=card.transform), loaded


def open_tiles(
    data: SpatialData | str | Path | TileSource,
    store: Path,
    *,
    labels_layer: str,
    table: str | None,
    mpp: float | None,
    card: ModelCard,
    all_fields: bool,
    n_threads: int,
    progress: bool,
) -> TileSource:
    """Tiles of an object (written to `store`, or continued there), of a path, or those given.

    Raises
    ------
    InputError
        If `data` is none of these.
    """
    if isinstance(data, SpatialData):
        request = tile_request(
            data, card, labels_layer=labels_layer, table=table, mpp=mpp, all_fields=all_fields
        )
        return write_tiles(data, store, replace(request, n_threads=n_threads, progress=progress))
    if isinstance(data, str | Path):
        return open_path(Path(data))
    if isinstance(data, TileSource):
        return data
    msg = (
        f"data is a {type(data).__name__}; pass a SpatialData object, the path of training tiles, or a source"
    )
    raise InputError(msg)


def tile_request(
    sdata: SpatialData,
    card: ModelCard,
    *,
    labels_layer: str,
    table: str | None,
    mpp: float | None,
    all_fields: bool,
) -> TileRequest:
    """What tiles of an object to train on, made as the model of `card` wants them."""
    return TileRequest(
        labels_layer=labels_layer,
        table=table,
        mpp=mpp,
        model_mpp=card.mpp,
        quantile=card.quantile,
        rule=card.rule,
        split=(1.0, 0.0, 0.0) if all_fields else (0.8, 0.1, 0.1),
        dataset=Path(sdata.path).stem if sdata.path is not None else "data",
    )


def is_tiles(path: Path) -> bool:
    """Whether there are training tiles at `path`, finished or not."""
    if (path / INDEX_FILE).is_file():
        return True
    if not (path / "zarr.json").is_file():
        return False
    return zarr.open_group(path, mode="r").attrs.get("kind") == KIND


def open_path(path: Path) -> TileSource:
    """Open training tiles.

    Raises
    ------
    InputError
        If there are none at `path`.
    """
    return ArraySource.open(path) if (path / INDEX_FILE).is_file() else TileStore.open(path)


def split(source: TileSource, validation: TileSource | None) -> tuple[TileSource, TileSource | None]:
    """Training tiles, and validation tiles if there are any."""
    train, held = source, validation
    if isinstance(source, SplitSource):
        present = set(source.splits.values())
        if "train" in present:
            train = source.split("train")
        if validation is None and "validation" in present:
            held = source.split("validation")
    if held is None:
        log.warning("no validation fields: the last averaged weights are kept, unchecked")
    return train, held
