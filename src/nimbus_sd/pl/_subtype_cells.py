"""What :func:`nimbus_sd.pl.subtypes` draws: the H&E of a table's cells, and what it says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from nimbus_sd._core.channels import look_nuclear, select_channels
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.center_elements import CenterElement
from nimbus_sd._sdata.he import check_he, looks_like_he
from nimbus_sd._sdata.resolve import extent
from nimbus_sd.pl._cells import region_and_ids
from nimbus_sd.pl._registered import Grid
from nimbus_sd.pl._subtype_panels import Cells
from nimbus_sd.pl._table import values
from nimbus_sd.pl._view import Window

_CIRCLE_UM, _CIRCLE_PX = 9.0, 24.0


@dataclass(frozen=True)
class Answers:
    """What a table says of the cells of one element.

    Attributes
    ----------
    region
        The element.
    ids
        int64 ``(n,)``.
    values
        1, 0 or NaN, ``(n, m)``.
    """

    region: str
    ids: np.ndarray
    values: np.ndarray


def answers_of(
    adata: AnnData, names: Sequence[str], *, table: str, layer: str, centers: str | None
) -> Answers:
    """Rows of one element.

    Raises
    ------
    ElementNotFoundError
        If there is no such layer, or no row of the element.
    InputError
        If there are several elements, or values are neither 1, 0 nor NaN.
    """
    where = f"table {table!r}"
    region, ids = region_and_ids(adata, where=where)
    there = list(pd.unique(region))
    listed = ", ".join(map(repr, there)) or "none"
    if centers is None and len(there) != 1:
        msg = f"{where} annotates several elements; choose one with centers=. Valid: {listed}"
        raise InputError(msg)
    if centers is not None and centers not in there:
        msg = f"{where} has no cell of {centers!r}; valid: {listed}"
        raise ElementNotFoundError(msg)
    chosen = there[0] if centers is None else centers
    rows = region == chosen
    found = values(adata[rows], names, layer, where=where)
    if not (np.isnan(found) | (found == 0) | (found == 1)).all():
        msg = (
            f"layer {layer!r} of {where} holds other values than 1, 0 and NaN; pass one that does, such as "
            "'positive' of nb.tl.predict_subtypes or 'gated' of nb.pp.gate"
        )
        raise InputError(msg)
    return Answers(chosen, ids[rows], found)


def with_answers(adata: AnnData, layer: str, *, table: str) -> AnnData:
    """The table without markers that have no label at all, such as those that were not gated."""
    found = values(adata, list(map(str, adata.var_names)), layer, where=f"table {table!r}")
    some = ~np.isnan(found).all(axis=0)
    return adata[:, some] if some.any() else adata


def he_grid(
    sdata: SpatialData,
    adata: AnnData,
    element: CenterElement,
    image: str | None,
    *,
    beside: str | None = None,
) -> Grid:
    """The H&E that the cells were predicted from, else the one that is named or overlaps them.

    `beside` names another image that is to lie on it.

    Raises
    ------
    ElementNotFoundError
        If there is no such image.
    InputError
        If it is no H&E, none or several overlap, or it shares no coordinate system with the cells,
        or with the other image.
    """
    record = adata.uns.get("nimbus_subtypes", {})
    recorded = record.get("images", {}).get(element.name)
    system = record.get("coordinate_systems", {}).get(element.name)
    if image is not None and image != recorded:
        system = None
    name = image or recorded or _only_he(sdata, element)
    array = el.get_image(sdata, name)
    check_he(el.ElementImage(name, array, el.channel_names(array)))
    found = element.overlapping(sdata, name, None if system is None else str(system))
    if not found:
        msg = (
            f"{element} and image {name!r} don't overlap in a shared coordinate system; align them with "
            "spatialdata.transformations.set_transformation, or name another H&E with image="
        )
        raise InputError(msg)
    if beside is not None:
        el.get_image(sdata, beside)
        theirs = el.shared_systems(*(el.systems(sdata, "images", n) for n in (name, beside)))
        found += [s for s in theirs if s not in found and element.overlapping(sdata, name, s)]
        found = [s for s in found if _overlap(sdata, name, beside, s)]
        if not found:
            raise InputError(_apart(sdata, name, beside))
    return Grid.of(sdata, name, found[0])


def _overlap(sdata: SpatialData, one: str, other: str, system: str) -> bool:
    if system not in el.systems(sdata, "images", other):
        return False
    a, b = (extent(sdata, "images", name, system) for name in (one, other))
    return bool(np.all(np.minimum(a[1], b[1]) > np.maximum(a[0], b[0])))


def _apart(sdata: SpatialData, he: str, image: str) -> str:
    ours, theirs = (", ".join(map(repr, el.systems(sdata, "images", name))) for name in (he, image))
    return (
        f"if_image={image!r} does not overlap the H&E {he!r} of these cells in a shared coordinate system "
        f"({he!r}: {ours}; {image!r}: {theirs}); name the fluorescence of the same section, other cells "
        "with centers=, or align the two with nb.pp.register_landmarks"
    )


def _only_he(sdata: SpatialData, element: CenterElement) -> str:
    found = [
        name
        for name, image in sdata.images.items()
        if looks_like_he(image) and element.overlapping(sdata, name, None)
    ]
    if len(found) != 1:
        listed = ", ".join(map(repr, found)) or "none"
        msg = f"{element}: which H&E? Those that overlap it: {listed}; name it with image="
        raise InputError(msg)
    return found[0]


def cells_in_view(
    sdata: SpatialData,
    element: CenterElement,
    grid: Grid,
    answers: Answers,
    *,
    window: Window,
    mpp: float | None,
) -> Cells:
    """Those of the cells that a window shows: labels as they lie there, circles around others."""
    ids, found = answers.ids, answers.values
    if element.kind == "labels":
        picture = grid.read_labels(sdata, element.name, window)
        seen = np.isin(ids, np.unique(picture.pixels).astype(np.int64))
        return Cells(ids[seen], np.empty((0, 2)), found[seen], picture, 0.0)
    every, xy, _ = element.read()
    at = pd.Index(every).get_indexer(ids)
    to_world = el.affine(sdata, element.kind, element.name, grid.system)
    world = (to_world @ np.column_stack([xy[at], np.ones(len(at))]).T)[:2].T
    places = grid.from_world(world)
    inside = (places >= [window.x.start, window.y.start]) & (places < [window.x.stop, window.y.stop])
    seen = inside.all(axis=1) & (at >= 0)
    width = _CIRCLE_PX if mpp is None else _CIRCLE_UM / mpp
    return Cells(ids[seen], places[seen], found[seen], None, width)


@dataclass(frozen=True)
class Channels:
    """Channels of the fluorescence to draw: one per marker, and the nuclei last if there are any.

    Attributes
    ----------
    names, positions
        In the image.
    nuclear
        The nuclei's name; None where no channel is theirs.
    """

    names: list[str]
    positions: list[int]
    nuclear: str | None


def channels_of(
    sdata: SpatialData,
    image: str,
    markers: Sequence[str],
    *,
    channels: Mapping[str, str],
    nuclear: str | None,
) -> Channels:
    """Find them by name.

    Raises
    ------
    ElementNotFoundError
        If the image, or a channel, does not exist.
    InputError
        If `channels` names markers that are not drawn.
    """
    there = el.channel_names(el.get_image(sdata, image))
    unknown = [m for m in channels if m not in markers]
    if unknown:
        msg = f"channels= names {unknown}, which are not drawn; valid: {', '.join(markers)}"
        raise InputError(msg)
    wanted = [channels.get(m, m) for m in markers]
    nuclei = nuclear or next(iter(look_nuclear(there)), None)
    every = wanted + ([nuclei] if nuclei else [])
    select_channels(there, list(dict.fromkeys(every)), where=image)
    return Channels(every, [there.index(c) for c in every], nuclei)
