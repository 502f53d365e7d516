"""Three kinds of models, each a folder with a card or an object: whose is the one that was given."""

from __future__ import annotations

from pathlib import Path

from nimbus_sd._core.errors import WeightsError
from nimbus_sd.models import embedding, loading, subtyper
from nimbus_sd.models.folder_kinds import EMBEDDING, KINDS, POSITIVITY, SUBTYPER

__all__ = ["EMBEDDING", "POSITIVITY", "SUBTYPER", "check_kind"]

_CLASSES = {
    POSITIVITY: loading.LoadedModel,
    EMBEDDING: embedding.EmbeddingModel,
    SUBTYPER: subtyper.SubtypeModel,
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
    for other, own in _CLASSES.items():
        if other == kind:
            continue
        if isinstance(model, own) or (folder is not None and (folder / other).is_file()):
            given, wanted = KINDS[other], KINDS[kind]
            where = f"model= is {given.what}" if folder is None else f"{folder} holds {given.what}"
            msg = f"{where}, for {given.user}; {wanted.user} takes another kind: {wanted.maker} makes one"
            raise WeightsError(msg)
