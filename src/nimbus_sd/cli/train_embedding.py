"""``nimbus-sd train-embedding``: a network that embeds cells, from images alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._complete import one_of
from nimbus_sd.cli._files import configuration, network
from nimbus_sd.cli._options import (
    AsJson,
    Channels,
    CoordinateSystem,
    Device,
    DryRun,
    Image,
    Mpp,
    Progress,
    Stores,
    Threads,
    channel_choice,
    device_count,
    image_choice,
    open_stores,
    split_names,
)
from nimbus_sd.cli._places import sample_lines, samples_of

if TYPE_CHECKING:
    from nimbus_sd.engine.normalization import Normalization


def train_embedding(
    stores: Stores,
    out: Annotated[Path, typer.Option(help="Folder for the model and its run, which goes on there.")],
    image: Image = None,
    centers: Annotated[
        str | None, typer.Option(help="Comma-separated labels, points or shapes; labels when left out.")
    ] = None,
    channels: Channels = "auto",
    config: Annotated[
        str,
        typer.Option(
            help="small, paper, cim, or a TOML or JSON file with keys of EmbeddingTrainConfig.",
            autocompletion=one_of("small", "paper", "cim"),
        ),
    ] = "small",
    architecture: Annotated[
        str | None, typer.Option(help="next_channel, cim, or JSON; instead of the configuration's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the configuration's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Instead of the configuration's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the configuration's.")] = None,
    normalization: Annotated[
        Path | None, typer.Option(help="JSON of Normalization.save; fitted on the images when left out.")
    ] = None,
    probe: Annotated[
        str | None, typer.Option(help="Column of a table with classes to judge the embedding by.")
    ] = None,
    table: Annotated[str | None, typer.Option(help="Table with that column, if several have it.")] = None,
    mpp: Mpp = None,
    coordinate_system: CoordinateSystem = None,
    cache: Annotated[str, typer.Option(help="Memory that patches may take.")] = "4 GiB",
    trainer: Annotated[str, typer.Option(help="plain, lightning.")] = "plain",
    device: Device = "auto",
    devices: Annotated[str, typer.Option(help="How many devices, for lightning.")] = "1",
    strategy: Annotated[str, typer.Option(help="How they work together, for lightning.")] = "auto",
    n_threads: Threads = 2,
    stop_at: Annotated[int | None, typer.Option(help="Stop after this step; a later call goes on.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    progress: Progress = True,
) -> None:
    """Train an embedding of cells on the patches around them, without segmentation or labels."""
    from nimbus_sd import tl
    from nimbus_sd._sdata.sizes import bytes_of
    from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig

    n_devices = device_count(trainer, devices, strategy)
    options: dict[str, Any] = {
        **{
            "image": image_choice(image),
            "centers": split_names(centers),
            "channels": channel_choice(channels),
        },
        **{"config": configuration("--config", config, EmbeddingTrainConfig)},
        **{"architecture": network("--architecture", architecture)},
        **{"epochs": epochs, "batch_size": batch_size, "seed": seed},
        **{"normalization": read_normalization(normalization), "probe": probe, "table": table},
        **{"mpp": mpp, "coordinate_system": coordinate_system, "cache": bytes_of(cache, argument="cache")},
        **{"trainer": trainer, "device": device, "n_threads": n_threads, "stop_at": stop_at},
    }
    objects = open_stores(stores)
    if dry_run:
        _say_plan(objects, stores, out, options, as_json=as_json)
        return
    model = tl.train_embedding(
        objects,
        out=out,
        **options,
        devices=n_devices,
        strategy=strategy,
        progress=progress,
    )
    card = model.card
    facts = {
        **{"stores": stores, "out": out, "model": model.name, "sha256": card.sha256, "crop": card.crop},
        **{"markers": model.markers, "metrics": card.metrics, "training_data": card.training_data},
    }
    shown = ", ".join(f"{k} {v}" for k, v in card.metrics.items())
    lines = [f"{model.name}: {shown}", f"next: nimbus-sd embed STORE --model {out}"]
    answer(facts, lines, as_json=as_json)


def read_normalization(path: Path | None) -> Normalization | None:
    """Scales from a file.

    Raises
    ------
    InputError
        If there is none.
    """
    if path is None:
        return None
    if not path.is_file():
        msg = f"--normalization {path}: there is no such file; Normalization.save writes one"
        raise InputError(msg)
    from nimbus_sd.engine.normalization import Normalization

    return Normalization.load(path)


def _say_plan(objects: Any, stores: list[str], out: Path, options: dict[str, Any], *, as_json: bool) -> None:
    from nimbus_sd._sdata.embedding_training import RUN, EmbeddingRequest, prepare
    from nimbus_sd.engine.device import resolve_device
    from nimbus_sd.engine.embedding.train_loop import LAST
    from nimbus_sd.engine.training.state import check_checkpoint, steps_done
    from nimbus_sd.tl._train_embedding import settings_for

    where = resolve_device(options["device"])
    settings = settings_for(
        options["config"],
        options["architecture"],
        epochs=options["epochs"],
        batch=options["batch_size"],
        seed=options["seed"],
    )
    asked = ("image", "centers", "channels", "coordinate_system", "mpp", "probe", "table", "normalization")
    request = EmbeddingRequest(
        **{name: options[name] for name in (*asked, "cache", "n_threads")}, progress=False
    )
    prepared = prepare(
        objects,
        request,
        settings,
        given_batch=options["batch_size"] is not None,
        out=out,
        trainer=options["trainer"],
        stop_at=options["stop_at"],
    )
    if request.normalization is not None:
        request.normalization.scale_of(prepared.found.channels)
    last = out / RUN / LAST
    if last.exists():
        check_checkpoint(last, config=prepared.config.to_dict())
    n, done = len(prepared.trained), steps_done(last)
    steps = prepared.config.total_steps(n)
    end = min(options["stop_at"] or steps, steps)
    samples = samples_of(prepared.found)
    markers = prepared.found.channels
    facts = {
        **{"stores": stores, "out": out, "dry_run": True, "model": settings.name, "markers": markers},
        **{"samples": samples, "n_trained": n, "n_judged": len(prepared.judged), "step": done},
        **{"end": end, "steps": steps, "batch": prepared.config.batch, "device": str(where)},
    }
    goes_on = f" (goes on after step {done})" if done else ""
    length = f"{end - done} steps of {prepared.config.batch} cells{goes_on}"
    lines = [
        f"would train {settings.name}: {length} on {where}",
        f"data: {n} cells to train, {len(prepared.judged)} to judge; markers: {', '.join(markers)}",
        *sample_lines(samples),
        f"would write the model and its run into {out}",
    ]
    answer(facts, lines, as_json=as_json)
