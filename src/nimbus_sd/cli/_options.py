"""What several commands share: splitting lists, opening stores."""

from __future__ import annotations

from nimbus_sd._core.errors import InputError
from nimbus_sd.io._open_store import is_store, open_store

__all__ = ["channel_choice", "is_store", "open_store", "split_names"]


def split_names(text: str | None) -> list[str] | None:
    """Split ``"a,b"`` into its names; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def channel_choice(text: str) -> str | list[str]:
    """``auto``, ``all`` or a list of names."""
    if text in ("auto", "all"):
        return text
    names = split_names(text)
    if not names:
        msg = f"--channels {text!r} names no channel; valid: auto, all, or comma-separated names"
        raise InputError(msg)
    return names
