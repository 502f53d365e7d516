"""Embedding networks with what is needed to use them again: markers, scales, crop; safe loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nimbus_sd._core.errors import InputError, WeightsError
from nimbus_sd.models.channelwise import ChannelwiseNet
from nimbus_sd.models.cim import CIM, CIMConfig
from nimbus_sd.models.folder_kinds import EMBEDDING, check_folder
from nimbus_sd.models.model_folder import holds, load_weights, read_card, write_model
from nimbus_sd.models.next_channel import NeXtChannel, NeXtChannelConfig

CARD_FILE = EMBEDDING

KINDS: dict[str, tuple[type, Callable[[Any], ChannelwiseNet]]] = {
    "next_channel": (NeXtChannelConfig, NeXtChannel),
    "cim": (CIMConfig, CIM),
}
TRANSFORMS = ("identity", "sqrt")


@dataclass(frozen=True)
class EmbeddingCard:
    """Everything needed to use, repeat and judge an embedding network.

    Parameters
    ----------
    name
        For people, and the record of a run.
    architecture
        ``"kind"`` (``"next_channel"`` or ``"cim"``) and that kind's parameters, the markers among them.
    scale
        Marker to the intensity (image units) that maps to 1, as in training; empty where the
        network was not trained on images, then embedding fits one.
    quantile
        Quantile that the scales were fitted with.
    transform
        Applied after ``clip(x / scale, 0, 1)``: ``"identity"`` or ``"sqrt"``.
    size
        Side of the patches that are cut, in px.
    crop
        Side of their centre that the network sees when it embeds, in px.
    mpp
        µm per px of the images of training; None where unknown.
    training
        Settings of the training.
    metrics, licence, training_data, command, commit, limits
        For people.
    weights_file, sha256
        Weight file beside the card, and its hash.
    """

    name: str
    architecture: Mapping[str, Any]
    scale: Mapping[str, float] = field(default_factory=dict)
    quantile: float = 0.9999
    transform: str = "sqrt"
    size: int = 32
    crop: int = 16
    mpp: float | None = None
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
        if self.transform not in TRANSFORMS:
            msg = (
                f"embedding card {self.name!r}: transform={self.transform!r}, valid: {', '.join(TRANSFORMS)}"
            )
            raise WeightsError(msg)
        if not 1 <= self.crop <= self.size:
            msg = f"embedding card {self.name!r}: crop={self.crop} must lie from 1 to size={self.size}"
            raise WeightsError(msg)

    @property
    def markers(self) -> tuple[str, ...]:
        """Names of the network's channels, in their order."""
        return tuple(self.architecture["markers"])

    @classmethod
    def read(cls, path: str | Path) -> EmbeddingCard:
        """Read a card from a folder.

        Raises
        ------
        WeightsError
            If there is none, it is not JSON, or holds unknown keys.
        """
        hint = "nb.tl.train_embedding makes one (models of nb.models.list() are for nb.tl.predict)"
        return read_card(cls, Path(path) / CARD_FILE, what="embedding", hint=hint)


@dataclass(frozen=True)
class EmbeddingModel:
    """A network in eval mode, its card, and where its weights lie.

    Attributes
    ----------
    net
        Maps normalised patches ``(b, c, y, x)`` to ``(b, embedding)``; ``net.activations`` and ``net.mix``
        are the two halves.
    card
        Markers, scales, crop, training.
    path
        Folder, if it lies on disk.
    """

    net: ChannelwiseNet
    card: EmbeddingCard
    path: Path | None = None

    def __repr__(self) -> str:
        where = "" if self.path is None else f", {str(self.path)!r}"
        return f"EmbeddingModel({self.name!r}, {len(self.markers)} markers{where})"

    @property
    def name(self) -> str:
        """The card's name."""
        return self.card.name

    @property
    def markers(self) -> tuple[str, ...]:
        """Names of the network's channels, in their order."""
        return self.card.markers


def build_embedding(architecture: Mapping[str, Any]) -> ChannelwiseNet:
    """Build an embedding network with fresh weights.

    Parameters
    ----------
    architecture
        ``"kind"`` (``"next_channel"`` where it is left out, or ``"cim"``) and that kind's parameters.

    Raises
    ------
    InputError
        If the kind or a parameter is unknown, or a value invalid.
    """
    values = dict(architecture)
    kind = values.pop("kind", "next_channel")
    if kind not in KINDS:
        msg = f"architecture kind {kind!r} is unknown; valid: {', '.join(KINDS)}"
        raise InputError(msg)
    config, net = KINDS[kind]
    try:
        made = config(**values)
    except TypeError as error:
        valid = ", ".join(f.name for f in fields(config))
        msg = f"architecture {dict(architecture)}: {error}; valid keys: {valid} (kind {kind!r})"
        raise InputError(msg) from error
    return net(made)


def architecture_of(net: ChannelwiseNet) -> dict[str, Any]:
    """Kind and parameters of a network, in JSON's types: what :func:`build_embedding` takes."""
    kind = next(name for name, (config, _) in KINDS.items() if isinstance(net.config, config))
    return {"kind": kind, **net.config.to_dict()}


def load_embedding(model: str | Path | EmbeddingModel | ChannelwiseNet) -> EmbeddingModel:
    """Load an embedding model.

    Parameters
    ----------
    model
        A folder that :func:`save_embedding` or :func:`nimbus_sd.tl.train_embedding` wrote, a model
        that is loaded already, or a bare network (its scales are then fitted on the images embedded).

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
    >>> from nimbus_sd.models.next_channel import NeXtChannel, NeXtChannelConfig
    >>> model = nb.models.load_embedding(NeXtChannel(NeXtChannelConfig(markers=("CD3", "CD8"))))
    >>> saved = nb.models.save_embedding(model, "untrained")
    >>> nb.models.load_embedding("untrained").markers
    ('CD3', 'CD8')
    """
    if isinstance(model, EmbeddingModel):
        return model
    if isinstance(model, ChannelwiseNet):
        size = model.config.size
        card = EmbeddingCard(type(model).__name__, architecture_of(model), size=size, crop=size)
        return EmbeddingModel(deepcopy(model).cpu().eval(), card)
    if not isinstance(model, str | Path):
        msg = f"model= is a {type(model).__name__}; pass what nb.tl.train_embedding returned, or its folder"
        raise InputError(msg)
    folder = Path(model)
    check_folder(folder, CARD_FILE)
    card = EmbeddingCard.read(folder)
    net = load_weights(lambda: build_embedding(card.architecture), card, folder / CARD_FILE)
    return EmbeddingModel(net, card, folder)


def is_stored(model: EmbeddingModel) -> bool:
    """Whether the model's folder holds these weights: another training may have written there since."""
    folder = model.path
    return folder is not None and holds(model.card, lambda: EmbeddingCard.read(folder), folder)


def save_embedding(model: EmbeddingModel, folder: str | Path) -> EmbeddingModel:
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
    >>> from nimbus_sd.models.cim import CIM, CIMConfig
    >>> model = nb.models.load_embedding(CIM(CIMConfig(markers=("CD3", "CD8"))))
    >>> nb.models.save_embedding(model, "shallow").path.name
    'shallow'
    """
    folder = Path(folder)
    card = write_model(model.net, model.card, folder / CARD_FILE)
    return EmbeddingModel(model.net, card, folder)
