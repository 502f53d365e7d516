"""Models that are a folder: a card (JSON) beside weights (safetensors), written whole, read by hash."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from nimbus_sd._core.errors import InputError, WeightsError
from nimbus_sd._core.files import whole_file
from nimbus_sd.models.loading import load_strict, read_state_dict, sha256


class Card(Protocol):
    """What every card has; a frozen dataclass that JSON can hold."""

    @property
    def weights_file(self) -> str:
        """Name of the weight file beside the card."""
        ...

    @property
    def sha256(self) -> str:
        """Its hash; empty before it is written."""
        ...


C = TypeVar("C", bound=Card)
N = TypeVar("N", bound=nn.Module)


def read_card(kind: type[C], path: Path, *, what: str, hint: str) -> C:
    """Read a card.

    Parameters
    ----------
    kind
        Its dataclass.
    path
        The file.
    what
        What the folder should hold, for messages.
    hint
        What makes one.

    Raises
    ------
    WeightsError
        If there is none, it is not JSON, or holds unknown keys.
    """
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        msg = f"no {what} model at {path.parent}; its folder holds {path.name} beside weights; {hint}"
        raise WeightsError(msg) from None
    except (ValueError, TypeError) as error:
        valid = ", ".join(f.name for f in fields(kind))  # type: ignore[arg-type]
        msg = f"{path} is no {what} card ({error}); valid keys: {valid}"
        raise WeightsError(msg) from error


def load_weights(build: Callable[[], N], card: Card, path: Path) -> N:
    """Build a network and fill it with the weights beside its card.

    Parameters
    ----------
    build
        Makes the network.
    card
        Names file and hash.
    path
        The card's file.

    Returns
    -------
    The network on the CPU, in eval mode.

    Raises
    ------
    WeightsError
        If the weights' hash is not the card's, the architecture is none, or keys or shapes don't fit.
    """
    weights = path.parent / card.weights_file
    found = sha256(weights)
    if card.sha256 and found != card.sha256:
        msg = f"{weights}: sha256 is {found}, its card says {card.sha256}; the file is damaged or another"
        raise WeightsError(msg)
    try:
        with torch.random.fork_rng(devices=[]):  # first weights, soon overwritten
            net = build()
    except InputError as error:
        msg = f"{path}: {error}"
        raise WeightsError(msg) from error
    load_strict(net, read_state_dict(weights), where=str(weights))
    return net.eval()


def holds(card: Card, read: Callable[[], Card], folder: Path | None) -> bool:
    """Whether a folder still holds a card's weights: another training may have written there since."""
    if folder is None or not card.sha256:
        return False
    try:
        return card.sha256 == read().sha256 == sha256(folder / card.weights_file)
    except WeightsError:
        return False


def write_model(net: nn.Module, card: C, path: Path) -> C:
    """Write weights and card, and return the card with its hash.

    Both files are written before either takes its place, the card last: an error leaves the old
    model as it was, and a kill the old one or the new one, save between the two renames: then
    the weights are new and the card is old, which loading refuses by their hash.

    Parameters
    ----------
    net
        Its state dict is written as it is.
    card
        Names the weight file.
    path
        The card's file; its folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    with whole_file(path) as text, whole_file(path.parent / card.weights_file) as weights:
        save_file(state, weights)
        weights.chmod(0o644)  # safetensors keeps files to their owner
        values: Any = card
        hashed: C = replace(values, sha256=sha256(weights))
        content: Any = hashed
        text.write_text(json.dumps(asdict(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return hashed
