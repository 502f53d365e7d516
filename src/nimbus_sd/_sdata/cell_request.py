"""Which labelled cells a sub-typing network learns from, and the table that has their labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anndata as ad
from spatialdata import SpatialData

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.center_elements import find_element
from nimbus_sd._sdata.elements import get_image
from nimbus_sd._sdata.table import link_keys, named_table
from nimbus_sd.engine.subtyping.sampling import Split

log = logging.getLogger("nimbus_sd")


@dataclass(frozen=True)
class CellRequest:
    """Which cells to learn from; see :func:`nimbus_sd.tl.train_subtyper`."""

    image: str | Mapping[str, str] | None
    table: str | ad.AnnData | Mapping[str, ad.AnnData] | None
    layer: str
    markers: str | Sequence[str] | None
    patient: str
    section: str | None
    split: Split | None
    n_cells: int | None
    mpp: float | None
    coordinate_system: str | None
    seed: int


def labels_table(sdata: SpatialData, of: str, request: CellRequest) -> ad.AnnData:
    """The table with the labels: given, named, or the one that has the layer.

    Where the request names one H&E, only the cells of elements that overlap it.

    Parameters
    ----------
    sdata, of
        The object and its name.
    request
        Which table, layer and image.

    Raises
    ------
    ElementNotFoundError
        If there is no such table, layer or image.
    InputError
        If it is not clear which table, or it annotates nothing.
    """
    given = request.table
    if isinstance(given, Mapping):
        if of not in given:
            msg = f"table= has no table for object {of!r}; it names {sorted(map(str, given))}"
            raise InputError(msg)
        given = given[of]
    elif isinstance(given, ad.AnnData) and of:
        msg = "table=AnnData goes with a single object; name the objects' tables, or pass {object: table}"
        raise InputError(msg)
    if given is None:
        having = [n for n, t in sdata.tables.items() if request.layer in t.layers]
        if len(having) != 1:
            told = f"several tables have it ({', '.join(having)})" if having else "no table has it"
            where = f" of object {of!r}" if of else ""
            msg = (
                f"layer={request.layer!r}{where}: {told}; pass table=. Tables: "
                f"{', '.join(map(repr, sdata.tables)) or 'none'}; nb.pp.gate writes labels"
            )
            raise (InputError if having else ElementNotFoundError)(msg)
        given = having[0]
    found = given if isinstance(given, ad.AnnData) else named_table(sdata, given)
    column = link_keys(found, where="the table with the labels")[0]
    if not isinstance(request.image, str):
        return found
    region = found.obs[column].astype(str)
    names = list(dict.fromkeys(region))
    get_image(sdata, request.image)
    near = [
        n
        for n in names
        if find_element(sdata, n).overlapping(sdata, request.image, request.coordinate_system)
    ]
    if not near or len(near) == len(names):  # none: placing them says why
        return found
    lost = [n for n in names if n not in near]
    log.warning("image=%r: cells of %s; not on it: %s", request.image, near, lost)
    return found[region.isin(near)]
