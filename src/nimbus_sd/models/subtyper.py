"""Sub-typing networks: a backbone (or one per marker), a head per marker, and the card with both."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError, WeightsError
from nimbus_sd._core.hierarchy import MARKERS, check_tree
from nimbus_sd.models.folder_kinds import SUBTYPER, check_folder
from nimbus_sd.models.model_folder import holds, load_weights, read_card, write_model
from nimbus_sd.models.subtype_backbones import backbone_config, build_backbone

CARD_FILE = SUBTYPER


@dataclass(frozen=True)
class SubtypeConfig:
    """Shape of a :class:`SubtypeNet`.

    Parameters
    ----------
    markers
        One logit each.
    backbone
        See ``nimbus_sd.models.subtype_backbones.backbone_config``.
    multitask
        One backbone for all markers, or one for each.
    hidden
        Width of the hidden layer of each head.
    """

    markers: tuple[str, ...] = MARKERS
    backbone: Mapping[str, Any] = field(default_factory=lambda: backbone_config("convnext-tiny"))
    multitask: bool = True
    hidden: int = 512

    def __post_init__(self) -> None:
        object.__setattr__(self, "markers", tuple(self.markers))
        object.__setattr__(self, "backbone", backbone_config(self.backbone))
        if not self.markers or len(set(self.markers)) < len(self.markers):
            msg = f"markers={self.markers}: name at least one, and each once"
            raise InputError(msg)
        if type(self.hidden) is not int or self.hidden < 1:
            msg = f"hidden={self.hidden!r} must be a whole number from 1; 512 is usual"
            raise InputError(msg)


class SubtypeNet(nn.Module):
    """Logits of each marker for RGB patches.

    Parameters
    ----------
    config
        Markers, backbone, heads.

    Examples
    --------
    >>> net = SubtypeNet(SubtypeConfig(backbone={"kind": "hovernet", "width": 2}, hidden=8))
    >>> net(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 4])
    """

    def __init__(self, config: SubtypeConfig) -> None:
        super().__init__()
        self.config = config
        n = 1 if config.multitask else len(config.markers)
        self.backbones = nn.ModuleList(build_backbone(config.backbone) for _ in range(n))
        width: Any = self.backbones[0].n_features
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1))
            for _ in config.markers
        )

    def forward(self, x: Tensor) -> Tensor:
        """RGB in [0, 1], (b, 3, y, x), to logits (b, markers)."""
        found = [backbone(x) for backbone in self.backbones]
        features = found * len(self.heads) if self.config.multitask else found
        return torch.cat([head(f) for head, f in zip(self.heads, features, strict=True)], dim=1)


@dataclass(frozen=True)
class SubtypeCard:
    """Everything needed to use, repeat and judge a sub-typing network.

    Parameters
    ----------
    name
        For people, and the record of a run.
    architecture
        Parameters of :class:`SubtypeConfig`.
    mpp
        µm per px that the network sees.
    patch
        Side of what it sees in px.
    thresholds
        Marker to the probability above which a cell counts as positive.
    hierarchy
        Marker to the one it implies; predictions that contradict it are undefined.
    training
        Settings and data of the training.
    metrics, licence, training_data, command, commit, limits
        For people.
    weights_file, sha256
        Weight file beside the card, and its hash.
    """

    name: str
    architecture: Mapping[str, Any]
    mpp: float = 0.325
    patch: int = 112
    thresholds: Mapping[str, float] = field(default_factory=dict)
    hierarchy: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    training_data: str = ""
    command: str = ""
    commit: str = ""
    limits: str = ""
    weights_file: str = "weights.safetensors"
    sha256: str = ""

    def __post_init__(self) -> None:
        try:
            good = self.mpp > 0 and type(self.patch) is int and self.patch >= 1
            thresholds = dict.fromkeys(self.markers, 0.5) | dict(self.thresholds)
            good &= set(thresholds) == set(self.markers) and all(0 < t < 1 for t in thresholds.values())
            check_tree(self.hierarchy, self.markers, where="the network")
        except (TypeError, KeyError, InputError) as error:
            msg = f"sub-typing card {self.name!r}: {error}"
            raise WeightsError(msg) from error
        if not good:
            msg = (
                f"sub-typing card {self.name!r}: mpp={self.mpp!r}, patch={self.patch!r}, thresholds="
                f"{dict(self.thresholds)}; valid: above 0, px from 1, and between 0 and 1 for "
                f"{', '.join(self.markers)}"
            )
            raise WeightsError(msg)
        object.__setattr__(self, "thresholds", thresholds)

    @property
    def markers(self) -> tuple[str, ...]:
        """Names of the network's outputs, in their order."""
        return tuple(self.architecture["markers"])

    @classmethod
    def read(cls, path: str | Path) -> SubtypeCard:
        """Read a card from a folder.

        Raises
        ------
        WeightsError
            If there is none, it is not JSON, or holds unknown keys.
        """
        hint = "nb.tl.train_subtyper makes one"
        return read_card(cls, Path(path) / CARD_FILE, what="sub-typing", hint=hint)


@dataclass(frozen=True)
class SubtypeModel:
    """A network in eval mode, its card, and where its weights lie.

    Attributes
    ----------
    net
        Maps RGB patches in [0, 1] ``(b, 3, y, x)`` to logits ``(b, markers)``.
    card
        Markers, pixel size, patch, thresholds, training.
    path
        Folder, if it lies on disk.
    """

    net: SubtypeNet
    card: SubtypeCard
    path: Path | None = None

    def __repr__(self) -> str:
        where = "" if self.path is None else f", {str(self.path)!r}"
        return f"SubtypeModel({self.name!r}, {', '.join(self.markers)}{where})"

    @property
    def name(self) -> str:
        """The card's name."""
        return self.card.name

    @property
    def markers(self) -> tuple[str, ...]:
        """Names of the network's outputs, in their order."""
        return self.card.markers


def build_subtyper(architecture: Mapping[str, Any]) -> SubtypeNet:
    """Build a sub-typing network with fresh weights.

    Parameters
    ----------
    architecture
        Parameters of :class:`SubtypeConfig`.

    Raises
    ------
    InputError
        If a parameter is unknown or a value invalid.
    """
    try:
        config = SubtypeConfig(**architecture)
    except TypeError as error:
        valid = ", ".join(f.name for f in fields(SubtypeConfig))
        msg = f"architecture {dict(architecture)}: {error}; valid keys: {valid}"
        raise InputError(msg) from error
    return SubtypeNet(config)


def check_patch(net: SubtypeNet, patch: int) -> None:
    """Raise :class:`InputError` unless the network can see patches of `patch` px."""
    training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, patch, patch, device=next(net.parameters()).device))
    except (RuntimeError, ValueError) as error:
        kind = net.config.backbone["kind"]
        msg = (
            f"patches of {patch} px are too small for this {kind} backbone ({error}); take a larger patch_um="
        )
        raise InputError(msg) from error
    finally:
        net.train(training)


def architecture_of(net: SubtypeNet) -> dict[str, Any]:
    """Parameters of a network, in JSON's types: what :func:`build_subtyper` takes."""
    return {**asdict(net.config), "markers": list(net.config.markers)}


def load_subtyper(model: str | Path | SubtypeModel | SubtypeNet) -> SubtypeModel:
    """Load a sub-typing model.

    Parameters
    ----------
    model
        A folder that :func:`save_subtyper` or :func:`nimbus_sd.tl.train_subtyper` wrote, a model that
        is loaded already, or a bare network (which then sees 112 px of 0.325 µm).

    Returns
    -------
    Network on the CPU in eval mode, a bare network's copy, and its card; a loaded model as it is.

    Raises
    ------
    WeightsError
        If the folder holds no model, its hash is not the card's, or keys or shapes don't fit.
    InputError
        If `model` is none of these.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> from nimbus_sd.models.subtyper import SubtypeConfig, SubtypeNet
    >>> net = SubtypeNet(SubtypeConfig(backbone={"kind": "hovernet", "width": 2}))
    >>> saved = nb.models.save_subtyper(nb.models.load_subtyper(net), "lymphocytes")
    >>> nb.models.load_subtyper("lymphocytes").markers
    ('CD45', 'CD3e', 'CD4', 'CD8a')
    """
    if isinstance(model, SubtypeModel):
        return model
    if isinstance(model, SubtypeNet):
        return SubtypeModel(deepcopy(model).cpu().eval(), SubtypeCard("subtyper", architecture_of(model)))
    if not isinstance(model, str | Path):
        msg = f"model= is a {type(model).__name__}; pass what nb.tl.train_subtyper returned, or its folder"
        raise InputError(msg)
    folder = Path(model)
    check_folder(folder, CARD_FILE)
    card = SubtypeCard.read(folder)
    net = load_weights(lambda: build_subtyper(card.architecture), card, folder / CARD_FILE)
    return SubtypeModel(net, card, folder)


def is_stored(model: SubtypeModel) -> bool:
    """Whether the model's folder holds these weights: another training may have written there since."""
    folder = model.path
    return folder is not None and holds(model.card, lambda: SubtypeCard.read(folder), folder)


def save_subtyper(model: SubtypeModel, folder: str | Path) -> SubtypeModel:
    """Write weights and card, and return the model with its hash and folder.

    An error leaves an older model as it was, see ``nimbus_sd.models.model_folder.write_model``.

    Parameters
    ----------
    model
        Network and card.
    folder
        Made if missing.

    Returns
    -------
    The same network, its card with the hash, and the folder.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> from nimbus_sd.models.subtyper import SubtypeConfig, SubtypeNet
    >>> net = SubtypeNet(SubtypeConfig(backbone={"kind": "hovernet", "width": 2}))
    >>> nb.models.save_subtyper(nb.models.load_subtyper(net), "mine").path.name
    'mine'
    """
    folder = Path(folder)
    card = write_model(model.net, model.card, folder / CARD_FILE)
    return SubtypeModel(model.net, card, folder)
