"""Three kinds of model folders, told apart by the file of their card: what reads, uses and makes each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nimbus_sd._core.errors import WeightsError

POSITIVITY, EMBEDDING, SUBTYPER = "card.json", "embedding.json", "subtyper.json"


@dataclass(frozen=True)
class FolderKind:
    """A kind of model in words.

    Attributes
    ----------
    what
        What it is called.
    loader, user, maker
        Functions that read such a folder, predict with it, and write one.
    """

    what: str
    loader: str
    user: str
    maker: str


KINDS = {
    POSITIVITY: FolderKind("a model of marker positivity", "nb.models.load", "nb.tl.predict", "nb.tl.train"),
    EMBEDDING: FolderKind(
        "an embedding model", "nb.models.load_embedding", "nb.tl.embed", "nb.tl.train_embedding"
    ),
    SUBTYPER: FolderKind(
        "a sub-typing model", "nb.models.load_subtyper", "nb.tl.predict_subtypes", "nb.tl.train_subtyper"
    ),
}


def check_folder(folder: Path, kind: str) -> None:
    """Raise :class:`WeightsError` for a folder that holds a model of another kind only.

    Parameters
    ----------
    folder
        It need not exist.
    kind
        Which card is wanted: :data:`POSITIVITY`, :data:`EMBEDDING` or :data:`SUBTYPER`.
    """
    if (folder / kind).is_file():
        return
    for card_file, found in KINDS.items():
        if (folder / card_file).is_file():
            msg = (
                f"{folder} holds {found.what}, not {KINDS[kind].what}: {found.loader} reads it, {found.user} "
                "uses it"
            )
            raise WeightsError(msg)
