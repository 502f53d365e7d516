"""``nimbus-sd models``: which weights there are, their cards, and fetching them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._complete import model_names
from nimbus_sd.cli._options import AsJson, DryRun, Overwrite

if TYPE_CHECKING:
    from nimbus_sd.models import EmbeddingCard, ModelCard, SubtypeCard

_WIDTH = 100


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show the whole card of this one: a name, or a folder with a card.json.",
            metavar="NAME",
            autocompletion=model_names,
        ),
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Download the weights into the cache, for use without a network.")
    ] = False,
    onnx: Annotated[Path | None, typer.Option(help="Export the network to this folder as ONNX.")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """List the registered models, print a card, fetch or export weights."""
    _check_call(name, onnx, fetch=fetch, overwrite=overwrite, dry_run=dry_run)
    if name is None:
        _list(as_json=as_json)
    elif onnx is not None:
        _export(name, onnx, overwrite=overwrite, dry_run=dry_run, as_json=as_json)
    elif fetch:
        _fetch(name, dry_run=dry_run, as_json=as_json)
    else:
        card = _card(name)
        answer(asdict(card), _shown(asdict(card)), as_json=as_json)


def _check_call(name: str | None, onnx: Path | None, *, fetch: bool, overwrite: bool, dry_run: bool) -> None:
    """Raise for options that would have no effect."""
    if name is None and (fetch or onnx is not None):
        msg = "--fetch and --onnx are for one model: nimbus-sd models NAME --fetch"
        raise InputError(msg)
    if fetch and onnx is not None:
        msg = "--fetch and --onnx: give one of them; --onnx downloads what it needs"
        raise InputError(msg)
    if overwrite and onnx is None:
        msg = "--overwrite is for --onnx, which is not given; leave it out"
        raise InputError(msg)
    if dry_run and onnx is None and not fetch:
        msg = "--dry-run is for --onnx and --fetch, as nothing else is written; leave it out"
        raise InputError(msg)


def _list(*, as_json: bool) -> None:
    from nimbus_sd.models.hub import cache_folder
    from nimbus_sd.models.registry import cards

    rows: list[dict[str, Any]] = []
    for card in cards().values():
        place = _place(card)
        state = "bundled" if not card.weights_url else "in the cache" if place else "downloaded on first use"
        rows.append(
            {"name": card.name, "mpp": card.mpp, "weights": state, "path": place, "licence": card.licence}
        )
    width = max(len(r["name"]) for r in rows)
    lines = [
        f"{r['name']:<{width}}  {r['mpp']:g} µm/px  {r['weights']:<23}  {_short(r['licence'])}" for r in rows
    ]
    lines += [
        f"\ncache: {cache_folder()} (NIMBUS_SD_CACHE chooses another)",
        "whole card: nimbus-sd models NAME",
    ]
    answer({"models": rows, "cache": cache_folder()}, lines, as_json=as_json)


def _place(card: ModelCard) -> Path | None:
    """The weight file, if it is on this machine."""
    from nimbus_sd.models.hub import cache_folder
    from nimbus_sd.models.registry import WEIGHTS

    for folder in (WEIGHTS / card.name, cache_folder() / card.name):
        if (folder / card.weights_file).is_file():
            return folder / card.weights_file
    return None


def _short(licence: str) -> str:
    return textwrap.shorten(f"licence: {licence or 'not known'}", 60, placeholder=" ...")


def _card(name: str) -> ModelCard | EmbeddingCard | SubtypeCard:
    """Card of a registered model, or of a folder of any kind."""
    from nimbus_sd.models import EmbeddingCard, ModelCard, SubtypeCard
    from nimbus_sd.models.folder_kinds import EMBEDDING, POSITIVITY, SUBTYPER
    from nimbus_sd.models.registry import get_card

    for file, card in ((POSITIVITY, ModelCard), (EMBEDDING, EmbeddingCard), (SUBTYPER, SubtypeCard)):
        if (Path(name) / file).is_file():
            return card.read(name)
    return get_card(name)


def _fetch(name: str, *, dry_run: bool, as_json: bool) -> None:
    from nimbus_sd.models import load
    from nimbus_sd.models.hub import cache_folder
    from nimbus_sd.models.registry import get_card

    card = get_card(name)  # folders need no fetching
    if dry_run:
        place = _place(card)
        target = place or cache_folder() / name / card.weights_file
        told = f"{name} is there: {place}" if place else f"would download {card.weights_url} to {target}"
        facts: dict[str, Any] = {"name": name, "path": target, "there": place is not None, "dry_run": True}
        answer(facts, told, as_json=as_json)
        return
    found = load(name)  # which checks the file
    size = 0 if found.path is None else found.path.stat().st_size
    facts = {"name": name, "path": found.path, "bytes": size, "sha256": found.card.sha256}
    lines = [f"{name} ({size / 1e6:.1f} MB) -> {found.path}", f"sha256 {found.card.sha256}"]
    answer(facts, lines, as_json=as_json)


def _export(name: str, out: Path, *, overwrite: bool, dry_run: bool, as_json: bool) -> None:
    from nimbus_sd.models import export_onnx

    if dry_run:
        from nimbus_sd.models.onnx import check_target
        from nimbus_sd.models.onnx_graph import check_extra

        check_target(out, overwrite=overwrite)
        check_extra()
        files = _would_export(name)
        facts: dict[str, Any] = {"name": name, "onnx": out, "files": files, "dry_run": True}
        answer(facts, f"would export {name} to {out}: {', '.join(files)}", as_json=as_json)
        return
    export_onnx(name, out, overwrite=overwrite)
    files = sorted(p.name for p in out.iterdir())
    answer(
        {"name": name, "onnx": out, "files": files}, f"{name} -> {out}: {', '.join(files)}", as_json=as_json
    )


def _would_export(name: str) -> list[str]:
    """Files of an export; the model is loaded if it is here, and not downloaded."""
    from nimbus_sd.models import load
    from nimbus_sd.models.card import CARD_FILE
    from nimbus_sd.models.onnx import HEAD_FILE, MODEL_FILE
    from nimbus_sd.models.registry import get_card

    here = Path(name).exists() or _place(get_card(name)) is not None
    card = load(name).card if here else get_card(name)
    return sorted([CARD_FILE, MODEL_FILE, *([HEAD_FILE] if card.head else [])])


def _shown(card: Mapping[str, Any]) -> list[str]:
    """The card in lines that fit a terminal; what is empty is left out."""
    filled = {k: v for k, v in card.items() if v not in ("", {})}
    width = max(map(len, filled))
    lines = []
    for key, value in filled.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        indent = " " * (width + 2)
        lines.append(
            textwrap.fill(
                text,
                _WIDTH,
                initial_indent=f"{key:<{width}}  ",
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return lines
