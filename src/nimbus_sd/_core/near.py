"""Names that were nearly right, for messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_ALIKE = 0.85  # CD3e and CD3, Colagen and Collagen; not CD11b and CD11c


def did_you_mean(wanted: str | Iterable[str], known: Iterable[object]) -> str:
    """`` (did you mean ...?)``: of each name the known one that it resembles; empty where none does.

    Case, blanks and punctuation don't count; figures do: CD4 is no misspelt CD3.

    Examples
    --------
    >>> did_you_mean(["cd3", "pan-CK", "Colagen", "CD4"], ["CD3", "CD31", "PanCK", "Collagen"])
    ' (did you mean CD3, PanCK, Collagen?)'
    >>> did_you_mean("moon", ["CD3"])
    ''
    """
    plain: dict[str, str] = {}
    for name in known:
        plain.setdefault(_plain(name), str(name))
    near: dict[str, None] = {}
    for name in [wanted] if isinstance(wanted, str) else wanted:
        alike = [p for p in plain if _figures(p) == _figures(_plain(name))]
        near |= dict.fromkeys(plain[p] for p in difflib.get_close_matches(_plain(name), alike, 1, _ALIKE))
    return f" (did you mean {', '.join(near)}?)" if near else ""


def _plain(name: object) -> str:
    return re.sub(r"[\W_]", "", str(name).lower())


def _figures(name: str) -> list[str]:
    return re.findall(r"\d+", name)
