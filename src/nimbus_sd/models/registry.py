"""The registered models: names to cards; nothing is ever "latest"."""

from __future__ import annotations

import builtins
from pathlib import Path

from nimbus_sd._core.errors import ElementNotFoundError
from nimbus_sd.models.card import ModelCard

WEIGHTS = Path(__file__).parent / "weights"

_NIMBUS_V1 = ModelCard(
    name="nimbus-v1",
    architecture={"in_channels": 2, "out_channels": 1, "depth": 5, "width": 64, "padding": "reflect"},
    mpp=1.0,
    weights_file="V1.pt",
    weights_url="hub:JLrumberger/Nimbus-Inference@main/V1.pt",
    licence=(
        "set by the authors on the hub page of JLrumberger/Nimbus-Inference (this package does not know it); "
        "read it before use"
    ),
    training_data="Pan-Multiplex: 197 million silver-standard annotations (Rumberger, Greenwald et al.)",
    limits="Not for H&E, immunohistochemistry or transcripts; other tissues and stains with care.",
    citation="Rumberger, Greenwald et al., Automated classification of cellular expression in multiplexed "
    "imaging data with Nimbus",
)


def cards() -> dict[str, ModelCard]:
    """Every registered card by name: the bundled weights and the downloadable ones."""
    bundled = (ModelCard.read(p) for p in sorted(WEIGHTS.glob("*/card.json")))
    return {card.name: card for card in (*bundled, _NIMBUS_V1)}


def get_card(name: str) -> ModelCard:
    """Return the card of a registered model.

    Raises
    ------
    ElementNotFoundError
        If the name is unknown; the message lists those that are.
    """
    known = cards()
    if name not in known:
        msg = (
            f"model {name!r} is neither registered nor a path. Registered: {', '.join(known)}. "
            "Or pass a folder with a card.json, or a state-dict file (.safetensors, .pt)"
        )
        raise ElementNotFoundError(msg)
    return known[name]


def list() -> builtins.list[str]:
    """Names of the registered models.

    Returns
    -------
    Names that :func:`nimbus_sd.models.load` takes: the bundled weights, then the downloadable ones.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> "nimbus-v1" in nb.models.list()
    True
    """
    return builtins.list(cards())
