"""Load a model by name, folder or file: hash checked, no pickled code, strict keys and shapes."""

from __future__ import annotations

import hashlib
import logging
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError, WeightsError
from nimbus_sd.models.architectures import NetConfig, build, config_of, is_exact
from nimbus_sd.models.card import CARD_FILE, ModelCard
from nimbus_sd.models.folder_kinds import check_folder
from nimbus_sd.models.head import PREFIX, CellHead
from nimbus_sd.models.hub import check_recorded, fetch
from nimbus_sd.models.registry import WEIGHTS, cards, get_card

OWN_LICENCE = "BSD-3-Clause"
log = logging.getLogger("nimbus_sd")


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode, its card, and where its weights came from.

    Attributes
    ----------
    net
        Maps ``(b, 2, y, x)`` (transformed marker, mask) to logits ``(b, 1, y, x)``.
    card
        Preprocessing, tiling and provenance; ``card.sha256`` is the hash of the file read.
    path
        The weight file.
    head
        What makes a cell's score of its mean probability and intensity; None if nothing does.
    """

    net: nn.Module
    card: ModelCard
    path: Path | None = None
    head: CellHead | None = None

    @property
    def name(self) -> str:
        """The card's name."""
        return self.card.name


def load(model: str | Path | LoadedModel = "nimbus-sd-s") -> LoadedModel:
    """Load a model.

    Parameters
    ----------
    model
        A registered name (see :func:`nimbus_sd.models.list`; write ``"./name"`` for a
        folder that is named like one), a folder with a ``card.json`` beside its weight
        file, a bare state-dict file (``.safetensors``, or ``.pt`` / ``.pth`` in the
        published layout), or a model that is loaded already.

    Returns
    -------
    The network on the CPU in float32 and eval mode, with its card.

    Raises
    ------
    ElementNotFoundError
        If the name is unknown.
    WeightsError
        If the file is missing or damaged, its hash is not the card's, its keys or
        shapes don't fit, or it holds pickled code.
    OfflineError
        If the weights have to be downloaded and can't be.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> nb.models.load("nimbus-sd-s").card.licence
    'BSD-3-Clause'
    """
    if isinstance(model, LoadedModel):
        return model
    card, path = _locate(model)
    found = sha256(path)
    if not card.sha256:
        check_recorded(path, found)
    if card.sha256 and found != card.sha256:
        msg = (
            f"{path}: sha256 is {found}, the card of {card.name!r} says {card.sha256}. The file is damaged "
            "or another version: delete it and load again, or write a card of its own for it"
        )
        raise WeightsError(msg)
    _check_tiling(card)
    net = build(card.architecture)
    state = read_state_dict(path)
    of_head = {k.removeprefix(PREFIX): state.pop(k) for k in sorted(state) if k.startswith(PREFIX)}
    load_strict(net, state, where=str(path))
    head = _load_head(card, of_head, where=str(path))
    if card.licence not in ("", OWN_LICENCE):
        log.warning("weights %s: licence: %s", card.name, card.licence)
    return LoadedModel(net=net.eval(), card=replace(card, sha256=found), path=path, head=head)


def _load_head(card: ModelCard, state: dict[str, Tensor], *, where: str) -> CellHead | None:
    config = card.head_config
    if config is None and not state:
        return None
    if config is None or not state:
        msg = f"{where}: the card of {card.name!r} and the weights disagree on whether there is a cell head"
        raise WeightsError(msg)
    head = CellHead(config)
    load_strict(head, state, where=f"{where} (cell head)")
    return head.eval()


def _locate(model: str | Path) -> tuple[ModelCard, Path]:
    path = Path(model)
    if isinstance(model, str) and path.name == model and model in cards():
        return _registered(model)
    if path.is_dir():
        check_folder(path, CARD_FILE)
        card = ModelCard.read(path)
        return card, path / card.weights_file
    if path.is_file():
        if (path.parent / CARD_FILE).is_file():
            card = ModelCard.read(path.parent)
            if card.weights_file == path.name:
                return card, path
        return _bare_card(path), path
    if isinstance(model, Path) or path.suffix in (".pt", ".pth", ".safetensors"):
        msg = f"no weights at {path}; pass a folder with {CARD_FILE}, a state-dict file or a registered name"
        raise WeightsError(msg)
    return _registered(str(model))


def _registered(name: str) -> tuple[ModelCard, Path]:
    """A registered name wins over whatever lies in the working directory; ``./name`` is a path."""
    card = get_card(name)
    bundled = WEIGHTS / card.name / card.weights_file
    return card, bundled if bundled.is_file() else fetch(card)


def _config(card: ModelCard) -> NetConfig:
    try:
        return config_of(card.architecture)
    except InputError as error:
        msg = f"model card {card.name!r}: {error}"
        raise WeightsError(msg) from error


def _check_tiling(card: ModelCard) -> None:
    """Raise if tiles cut as the card says could not give the whole image's answer, though it says so."""
    config = _config(card)
    if card.exact and not is_exact(config):
        msg = (
            f"model card {card.name!r}: its network sees the whole input (squeeze and excitation), so tiled "
            "and whole-image scores differ; set exact=false"
        )
        raise WeightsError(msg)
    if card.stride % config.stride or (card.exact and card.halo < config.halo):
        msg = (
            f"model card {card.name!r}: stride {card.stride} and halo {card.halo} don't fit its network: "
            f"it needs a multiple of {config.stride} and at least {config.halo} px (or exact=false)"
        )
        raise WeightsError(msg)


def _bare_card(path: Path) -> ModelCard:
    """Card for a file without one: the published preprocessing, the width read from the weights."""
    state = read_state_dict(path)
    first, depth = state.get("contracting_layers.0.conv2d_0.weight"), 1
    while f"contracting_layers.{2 * (depth - 1)}.conv2d_0.weight" in state:
        depth += 1
    if first is None or first.ndim != 4:
        check_folder(path.parent, CARD_FILE)
        msg = (
            f"{path}: not a state dict in the published layout (no 4-d contracting_layers.0.conv2d_0.weight; "
            f"first keys: {sorted(state)[:3]}). Put a {CARD_FILE} beside it, or convert its key names"
        )
        raise WeightsError(msg)
    architecture = {"in_channels": first.shape[1], "width": first.shape[0], "depth": depth}
    base = ModelCard(name=path.stem, architecture=architecture)
    config = base.unet_config
    return replace(base, weights_file=path.name, stride=config.stride, halo=config.halo)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict without running any code of the file.

    Parameters
    ----------
    path
        ``.safetensors``, or a torch file (read with ``weights_only=True``).

    Raises
    ------
    WeightsError
        If the file is missing or damaged, holds pickled objects, or no state dict.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        msg = f"no weight file at {path}"
        raise WeightsError(msg) from None
    except pickle.UnpicklingError as error:
        msg = (
            f"{path} is not a plain state dict: it holds pickled objects, which could run code, and is not "
            "read. Save it with torch.save(net.state_dict(), path) or as .safetensors"
        )
        raise WeightsError(msg) from error
    # what torch's unpickler raises on bytes that are no pickle
    except (
        *(SafetensorError, RuntimeError, EOFError, BadZipFile, OSError),
        *(LookupError, ValueError, TypeError, AttributeError),
    ) as error:
        msg = f"{path} is damaged or not a weight file ({error}); fetch or export it again"
        raise WeightsError(msg) from error
    for key in ("state_dict", "desc"):  # lightning's name, HoVer-Net's
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        msg = f"{path} holds no state dict (name to tensor); save it with torch.save(net.state_dict(), path)"
        raise WeightsError(msg)
    return state


def load_strict(net: nn.Module, state: dict[str, Tensor], *, where: str) -> None:
    """Copy `state` into `net`; every key and shape must match.

    Raises
    ------
    WeightsError
        Naming the missing, unexpected and misshapen entries.
    """
    expected = net.state_dict()
    # a checkpoint may lack the counters, which inference never reads
    missing = sorted(k for k in expected.keys() - state.keys() if not k.endswith("num_batches_tracked"))
    unexpected = sorted(state.keys() - expected.keys())
    misshapen = [
        f"{k}: file {tuple(state[k].shape)}, network {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or unexpected or misshapen:
        parts = [("missing", missing), ("unexpected", unexpected), ("shapes differ", misshapen)]
        found = "; ".join(f"{what} ({len(keys)}): {', '.join(keys[:3])}" for what, keys in parts if keys)
        msg = f"{where} does not fit the network: {found}. Check the card's architecture (width, depth)"
        raise WeightsError(msg)
    net.load_state_dict({**expected, **state})


def save(
    net: nn.Module, folder: str | Path, card: ModelCard, *, half: bool = True, head: CellHead | None = None
) -> ModelCard:
    """Write weights as safetensors and the card beside them, and return the card with its hash.

    Parameters
    ----------
    net
        Network to export.
    folder
        Made if missing.
    card
        Its ``weights_file`` names the weight file; ``sha256`` is filled in.
    half
        Store the network's floating-point tensors as float16.
    head
        Its cell head; stored as float32.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    if head is not None:
        state |= {f"{PREFIX}{k}": v.detach().cpu().contiguous() for k, v in head.state_dict().items()}
        card = replace(card, score_rule="cell_head", head=head.config.to_dict())
    save_file(state, folder / card.weights_file)
    card = replace(card, sha256=sha256(folder / card.weights_file))
    card.write(folder)
    return card


def sha256(path: str | Path) -> str:
    """Hexadecimal hash of a file.

    Raises
    ------
    WeightsError
        If there is no such file.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        msg = f"no weight file at {path}"
        raise WeightsError(msg) from None
