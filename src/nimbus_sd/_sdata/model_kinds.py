"""Three kinds of models, each a folder with a card or an object: whose is the one that was given."""

from __future__ import annotations

from pathlib import Path

from nimbus_sd._core.errors import WeightsError
from nimbus_sd.models import card, embedding, loading, subtyper

POSITIVITY, EMBEDDING, SUBTYPER = card.CARD_FILE, embedding.CARD_FILE, subtyper.CARD_FILE
_KINDS = {  # what it is called, its class, what uses it, what makes it
    POSITIVITY: ("a model of marker positivity", loading.LoadedModel, "nb.tl.predict", "nb.tl.train"),
    EMBEDDING: ("an embedding model", embedding.EmbeddingModel, "nb.tl.embed", "nb.tl.train_embedding"),
    SUBTYPER: (
        "a sub-typing model",
        subtyper.SubtypeModel,
        "nb.tl.predict_subtypes",
        "nb.tl.train_subtyper",
    ),
}


def check_kind(model: object, kind: str) -> None:
    """Raise :class:`WeightsError` for a model, or a folder of one, of another kind.

    Parameters
    ----------
    model
        What the user gave.
    kind
        What is needed: :data:`POSITIVITY`, :data:`EMBEDDING` or :data:`SUBTYPER`.
    """
    folder = Path(model) if isinstance(model, str | Path) else None
    if folder is not None and (folder / kind).is_file():
        return
    for other, (what, own, user, _) in _KINDS.items():
        if other == kind:
            continue
        if isinstance(model, own) or (folder is not None and (folder / other).is_file()):
            _, _, mine, maker = _KINDS[kind]
            where = f"model= is {what}" if folder is None else f"{folder} holds {what}"
            msg = f"{where}, for {user}; {mine} takes another kind: {maker} makes one"
            raise WeightsError(msg)
