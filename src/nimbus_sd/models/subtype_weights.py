"""Pretrained weights of the H&E backbones: from the hub, its cache, or a path."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nimbus_sd._core.errors import InputError, NimbusWarning, OfflineError, WeightsError
from nimbus_sd._core.lazy import require
from nimbus_sd.models.hovernet import HoVerNetEncoder, encoder_weights
from nimbus_sd.models.loading import load_strict, read_state_dict
from nimbus_sd.models.subtype_backbones import Backbone
from nimbus_sd.models.subtyper import SubtypeNet

#: Backbone to its repository on the hub: the ConvNeXts have seen ImageNet, Phikon H&E slides.
HUB = {
    "convnext-tiny": "facebook/convnext-tiny-224",
    "convnext-small": "facebook/convnext-small-224",
    "convnext-base": "facebook/convnext-base-224",
    "convnextv2-atto": "facebook/convnextv2-atto-1k-224",
    "convnextv2-femto": "facebook/convnextv2-femto-1k-224",
    "convnextv2-pico": "facebook/convnextv2-pico-1k-224",
    "convnextv2-nano": "facebook/convnextv2-nano-1k-224",
    "convnextv2-tiny": "facebook/convnextv2-tiny-1k-224",
    "phikon": "owkin/phikon",
}
_PINNED = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w.-]+)")


def load_pretrained(net: SubtypeNet, backbone: str | object, pretrained: bool | str | Path | None) -> str:
    """Fill a network's backbones with pretrained weights; the heads keep theirs.

    Parameters
    ----------
    net
        Filled in place.
    backbone
        What the network was built from; a name may have weights on the hub.
    pretrained
        True takes the hub's (or its cache's). None too, but where they can't be had, or there
        are none, it warns and leaves the network as it is. False leaves it. A path, to a folder
        that `transformers` wrote or to a state dict, is read from there (HoVer-Net: the public
        checkpoints). ``"repository@revision"`` takes that commit of the hub's, as a card records it.

    Returns
    -------
    Where the weights come from, for the record: ``"random"``, a path, or ``repository@revision``.

    Raises
    ------
    WeightsError
        If the weights don't fit the network, or True is asked for and there are none.
    OfflineError
        If True is asked for and the hub can't be reached.
    """
    if pretrained is False:
        return "random"
    named = _PINNED.fullmatch(pretrained) if isinstance(pretrained, str) else None
    if named and not Path(named.string).exists():
        found, origin = _from_hub(net, named["repo"], named["revision"])
    elif isinstance(pretrained, str | Path):
        found, origin = _from_path(net, Path(pretrained)), str(pretrained)
    elif pretrained is None or pretrained is True:
        try:
            found, origin = _from_hub(net, backbone)
        except (OfflineError, WeightsError) as error:
            if pretrained:
                raise
            msg = f"the backbone starts from random weights. {error}, or pretrained=False if that is meant"
            warnings.warn(msg, NimbusWarning, stacklevel=2)
            return "random"
    else:
        msg = f"pretrained={pretrained!r}; valid: None, True, False or a path"
        raise InputError(msg)
    for each in _backbones(net):
        load_strict(each.net, found, where=origin)
    return origin


def _backbones(net: SubtypeNet) -> list[Backbone]:
    return [b for b in net.backbones if isinstance(b, Backbone)]


def _from_path(net: SubtypeNet, path: Path) -> dict[str, Tensor]:
    first = _backbones(net)[0].net
    if path.is_dir():
        return _transformers_state(first, str(path), local_files_only=True)
    state = read_state_dict(path)
    if isinstance(first, HoVerNetEncoder):
        return encoder_weights(state, where=str(path))
    # a whole classifier's names start with its backbone's: convnext., vit., …
    prefix = f"{getattr(first, 'base_model_prefix', '')}."
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return _own(first, inner or state)


def _own(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without a classifier's or pooler's weights, which the backbone has no place for."""
    extra = ("classifier.", "pooler.")
    expected = net.state_dict()
    return {k: v for k, v in state.items() if k in expected or not k.startswith(extra)}


def _from_hub(
    net: SubtypeNet, backbone: object, revision: str | None = None
) -> tuple[dict[str, Tensor], str]:
    repo = HUB.get(backbone, backbone if revision else None) if isinstance(backbone, str) else None
    if repo is None:
        msg = (
            f"backbone {backbone!r} has no weights on the hub; those that have: {', '.join(HUB)}. Pass "
            "pretrained=path to a state dict (HoVer-Net: a public checkpoint)"
        )
        raise WeightsError(msg)
    pinned = {} if revision is None else {"revision": revision}
    state = _transformers_state(_backbones(net)[0].net, repo, **pinned)
    return state, f"{repo}@{_commit(repo, revision)}"


def _commit(repo: str, revision: str | None) -> str:
    """Commit of the hub's that was just loaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else revision or "unknown"


def _transformers_state(net: nn.Module, where: str, **kwargs: Any) -> dict[str, Tensor]:
    """State dict of a model that transformers reads.

    Raises
    ------
    WeightsError
        If the weights are of another kind of network: what they lack would be drawn at random.
    OfflineError
        If the hub can't be reached.
    """
    require("transformers", extra="he")
    kind: Any = type(net)
    extra = {"add_pooling_layer": False} if kind.__name__ == "ViTModel" else {}
    try:
        loaded, told = kind.from_pretrained(where, output_loading_info=True, **extra, **kwargs)
    except RuntimeError as error:  # shapes that differ
        msg = f"{where} holds weights of another network than {kind.__name__}: {_first_line(error)}"
        raise WeightsError(msg) from error
    except (OSError, ValueError) as error:
        if Path(where).is_dir():
            msg = f"{where} holds no weights that transformers reads as {kind.__name__}: {_first_line(error)}"
            raise WeightsError(msg) from error
        msg = (
            f"could not get {where} from the hub ({type(error).__name__}). On a machine with a network, run "
            f"`hf download {where} --local-dir FOLDER` and pass pretrained=FOLDER"
        )
        raise OfflineError(msg) from error
    lacking = sorted(told["missing_keys"])
    if lacking:
        msg = (
            f"{where} holds weights of another network than {kind.__name__}: it lacks {len(lacking)} of its "
            f"tensors, such as {lacking[0]}"
        )
        raise WeightsError(msg)
    state: dict[str, Tensor] = loaded.state_dict()
    return state


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
