"""Packages that nimbus_sd declares: which are here, and whether they are new enough."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from nimbus_sd.cli._checkup import Checkup

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "nimbus-sd"
_SECTION = "packages"
_WHY = {
    "pynndescent": "0.7.0 returns arrays that sc.pp.neighbors of scanpy 1.11 can't read",
    "numpy": "torch and spatialdata are built for NumPy 2",
}


@dataclass(frozen=True)
class Found:
    """A package that is asked for.

    Attributes
    ----------
    name, needed, extra
        As declared; `extra` is empty for those that are always needed.
    installed
        Its version; None if it is not there.
    fits
        Whether that is a version asked for.
    """

    name: str
    needed: str
    extra: str
    installed: str | None
    fits: bool


def declared(package: str = NAME) -> Iterator[Found]:
    """Every package that an installed one needs on this machine, those of its extras too."""
    from packaging.requirements import Requirement

    for need in map(Requirement, requires(package) or ()):
        extra = _extra(need)
        if extra is None or need.name == package:  # another platform's, or an extra made of extras
            continue
        yield _found(need, extra)
        if need.extras:  # dask[distributed]
            yield from _of_extras(need, extra)


def _of_extras(need: Requirement, extra: str) -> Iterator[Found]:
    from packaging.requirements import Requirement

    try:
        theirs = [Requirement(text) for text in requires(need.name) or ()]
    except PackageNotFoundError:  # said of the package itself
        return
    yield from (_found(each, extra) for each in theirs if _extra(each) in need.extras)


def _extra(need: Requirement) -> str | None:
    """Which extra brings it, "" for none; None if it is not for this Python or platform."""
    if need.marker is None:
        return ""
    named = re.search(r"extra == \"([^\"]+)\"", str(need.marker))
    extra = named[1] if named else ""
    return extra if need.marker.evaluate({"extra": extra}) else None


def _found(need: Requirement, extra: str) -> Found:
    try:
        installed = version(need.name)
    except PackageNotFoundError:
        return Found(need.name, str(need.specifier), extra, None, fits=False)
    fits = need.specifier.contains(installed, prereleases=True)
    return Found(need.name, str(need.specifier), extra, installed, fits)


def look_at_packages(checkup: Checkup) -> None:
    """Rows of all packages; missing and unfit ones are wrong, missing ones of extras are notes."""
    extras: dict[str, list[Found]] = {}
    for each in declared():
        if each.extra:
            extras.setdefault(each.extra, []).append(each)
            continue
        needed = f"  (needs {each.needed})" if each.needed else ""
        checkup.say(_SECTION, each.name, f"{each.installed or 'missing'}{needed}", each.installed)
        if not each.fits:
            _complain(checkup, each)
    for extra, packages in sorted(extras.items()):
        shown = ", ".join(f"{p.name} {p.installed or 'missing'}" for p in packages)
        checkup.say(_SECTION, f"[{extra}]", shown, {p.name: p.installed for p in packages})
        for each in packages:
            if each.installed and not each.fits:
                _complain(checkup, each)
        if any(p.installed is None for p in packages):
            checkup.note(f'the extra "{extra}" is not installed: pip install "{NAME}[{extra}]"')


def _complain(checkup: Checkup, found: Found) -> None:
    what = f"{found.name} is {found.installed or 'missing'}, needed is {found.needed or 'any'}"
    why = f" ({_WHY[found.name]})" if found.name in _WHY else ""
    checkup.wrong(what + why, f'pip install "{found.name}{found.needed}"')
