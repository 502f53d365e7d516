"""Cells that a command looks at, and the tables it leaves: the same words for every command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nimbus_sd._core.errors import InputError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from nimbus_sd._sdata.centers import CenterSet


_KEY = re.compile(r"(?!__)[\w.-]+")


def check_key(option: str, name: str, there: Iterable[str | None]) -> None:
    """Raise unless a column or layer of this name can be stored beside those that are there.

    Raises
    ------
    InputError
        If a store can't hold the name, or holds one that differs in case only.
    """
    if not _KEY.fullmatch(name) or name in (".", "..", "_index"):
        msg = (
            f"{option} {name!r} can't be stored; valid: letters, digits, '_', '-', '.', and no '__' in front"
        )
        raise InputError(msg)
    alike = [n for n in there if n is not None and n != name and n.casefold() == name.casefold()]
    if alike:
        msg = f"{option} {name!r}: there is {alike[0]!r}, and a store doesn't tell them apart; choose another"
        raise InputError(msg)


def destination_of(out_dir: Path | None) -> bool | Path:
    """What ``write=`` of the functions takes: into the stores themselves, or below a folder."""
    return True if out_dir is None else out_dir


def tables_of(
    objects: SpatialData | Sequence[SpatialData], stores: Sequence[str], out_dir: Path | None, table: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """What was written where, as facts and as lines; a store without a cell has no table."""
    from nimbus_sd._sdata.cohort import as_cohort
    from nimbus_sd._sdata.destination import destinations

    cohort = as_cohort(objects)
    places: Sequence[object] = (
        stores if out_dir is None else [t.place for t in destinations(cohort, out_dir).values()]
    )
    facts, lines = [], []
    for sdata, place in zip(cohort.values(), places, strict=True):
        if table not in sdata.tables:
            continue
        found = sdata.tables[table]
        names = list(found.var_names)
        facts.append({"store": str(place), "table": table, "n_cells": found.n_obs, "markers": names})
        lines.append(f"{found.n_obs} cells x {found.n_vars} markers -> {place}/tables/{table}")
    return facts, lines


def samples_of(centers: CenterSet) -> list[dict[str, Any]]:
    """Cells by element, with the image they are looked at in."""
    return [
        {
            **{"object": s.of, "element": s.region, "kind": s.kind, "image": s.image_name},
            **{"n_cells": len(s), "mpp": s.mpp},
        }
        for s in centers.samples
    ]


def sample_lines(samples: Sequence[Mapping[str, Any]], *, most: int = 12) -> list[str]:
    """The same for people."""
    lines = []
    for s in samples[:most]:
        mpp = "" if s["mpp"] is None else f", {s['mpp']:.4g} µm/px"
        where = f"{s['object']}/{s['element']}" if s["object"] else s["element"]
        lines.append(f"  {s['n_cells']} cells of {s['kind']} {where} in {s['image']}{mpp}")
    if len(samples) > most:
        lines.append(f"  … and {len(samples) - most} more elements")
    return lines
