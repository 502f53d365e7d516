"""Names: what a file is called without its suffix, and what spatialdata accepts as an element's name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from nimbus_sd._core.errors import InputError, NimbusWarning

_SUFFIX = re.compile(r"(?:\.ome)?\.tiff?$", re.IGNORECASE)


def is_tiff(path: Path) -> bool:
    """Whether `path` is a visible file with a TIFF suffix (``.tif .tiff .ome.tif .ome.tiff``)."""
    return not path.name.startswith(".") and bool(_SUFFIX.search(path.name)) and path.is_file()


def tiff_stem(name: str) -> str:
    """Return a file's name without its TIFF suffix: ``fov1.ome.tif`` gives ``fov1``."""
    return _SUFFIX.sub("", name)


def listing(names: Iterable[object], limit: int = 12) -> str:
    """Join names for an error message, the first `limit` of them."""
    items = [str(name) for name in names]
    if not items:
        return "(none)"
    rest = f", … and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest


def duplicates(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, in order of their second occurrence."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for name in names:
        if name in seen:
            twice[name] = None
        seen.add(name)
    return list(twice)


def element_names(fovs: Sequence[str], *, what: str) -> dict[str, str]:
    """Map fields' names to names that spatialdata accepts, warning where they differ.

    spatialdata allows letters, digits, ``_``, ``-`` and ``.``, no leading ``__``,
    and no two names that differ in case only.

    Raises
    ------
    InputError
        If two fields would get the same name.
    """
    valid = {fov: _valid_name(fov) for fov in fovs}
    changed = {fov: name for fov, name in valid.items() if fov != name}
    taken: dict[str, str] = {}
    for fov, name in valid.items():
        if name.casefold() in taken:
            msg = (
                f"{what}: the fields {taken[name.casefold()]!r} and {fov!r} would both be named {name!r} "
                "(spatialdata allows letters, digits, '_', '-' and '.', and ignores case). Rename one."
            )
            raise InputError(msg)
        taken[name.casefold()] = fov
    if changed:
        pairs = listing(f"{fov!r} → {name!r}" for fov, name in changed.items())
        warnings.warn(
            f"{what}: renamed fields whose names spatialdata does not allow: {pairs}",
            NimbusWarning,
            stacklevel=3,
        )
    return valid


def _valid_name(name: str) -> str:
    cleaned = "".join(char if char.isalnum() or char in "_-." else "_" for char in name)
    return "_" + cleaned.lstrip("_") if cleaned.startswith("__") else cleaned
