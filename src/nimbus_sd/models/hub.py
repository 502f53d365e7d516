"""Fetch published weights into the user's cache; never into site-packages."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nimbus_sd._core.errors import OfflineError, WeightsError

if TYPE_CHECKING:  # a review finds its cache here, and needs no torch
    from nimbus_sd.models.card import ModelCard

_URL = re.compile(r"hub:(?P<repo>[^@]+)@(?P<revision>[^/]+)/(?P<file>.+)")


def cache_folder() -> Path:
    """Where downloads live: ``$NIMBUS_SD_CACHE``, else the platform's user cache."""
    import platformdirs  # not there on a bare GPU machine, which needs no cache

    return Path(os.environ.get("NIMBUS_SD_CACHE") or platformdirs.user_cache_dir("nimbus-sd"))


def fetch(card: ModelCard) -> Path:
    """Return the card's weight file, downloaded with a progress bar when it is not cached.

    Raises
    ------
    WeightsError
        If the card names no source.
    OfflineError
        If the hub can't be reached; says where to put the file by hand.
    """
    match = _URL.fullmatch(card.weights_url)
    if match is None:
        msg = f"model {card.name!r} has no weight file and its card names no source (weights_url)"
        raise WeightsError(msg)
    folder = cache_folder() / card.name
    target = folder / card.weights_file
    if target.is_file():
        return target
    # costs a second to import; only a download needs it
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        found = hf_hub_download(match["repo"], match["file"], revision=match["revision"], local_dir=folder)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        msg = (
            f"could not download the weights of {card.name!r} ({match['file']} of hub repository "
            f"{match['repo']}): {type(error).__name__}. On a machine with a network, fetch that file and "
            f"put it at {target}, or pass its path as model="
        )
        raise OfflineError(msg) from error
    return Path(found)


def check_recorded(path: Path, found: str) -> None:
    """Compare a cached file with the hash of its first use, or note it beside the file.

    Parameters
    ----------
    path
        Weight file; one outside the cache is not looked at.
    found
        Its sha256.

    Raises
    ------
    WeightsError
        If the file has changed since it was first used.
    """
    if not path.resolve().is_relative_to(cache_folder().resolve()):
        return
    record = path.with_name(f"{path.name}.sha256")
    if not record.is_file():
        # a cache that can't be written to holds no record; the file is used all the same
        with suppress(OSError):
            record.write_text(f"{found}\n", encoding="utf-8")
        return
    expected = record.read_text(encoding="utf-8").strip()
    if found != expected:
        msg = (
            f"{path}: sha256 is {found}, but {expected} when it was first used ({record.name}). If you did "
            "not replace it, it is damaged: delete both files and load again. If you did, delete "
            f"{record.name}"
        )
        raise WeightsError(msg)
