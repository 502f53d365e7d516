"""Score maps in objects and stores: what they are called, and which images are some."""

from __future__ import annotations

from typing import Any

from spatialdata import SpatialData

from nimbus_sd._sdata.elements import ATTRS_KEY, own_attrs
from nimbus_sd._sdata.map_element import DTYPES, MapSink, check_dtype, keep_alive, map_element
from nimbus_sd._sdata.resolve import ResolvedSample

__all__ = [
    "DTYPES",
    "MapSink",
    "check_dtype",
    "keep_alive",
    "map_element",
    "map_name",
    "remember_map",
    "with_map",
]


def map_name(base: str, sample: ResolvedSample, n_samples: int) -> str:
    """Element name: `base`, with the labels' name when there are several samples."""
    return base if n_samples == 1 else f"{base}_{sample.pair.labels}"


def with_map(attrs: dict[str, Any], name: str) -> dict[str, Any]:
    """An object's or store's attributes, with one more image listed as a score map.

    Examples
    --------
    >>> with_map({"nimbus_sd": {"mpp": 0.5}}, "score")
    {'nimbus_sd': {'mpp': 0.5, 'maps': ['score']}}
    """
    own = dict(attrs.get(ATTRS_KEY, {}))
    own["maps"] = sorted({*own.get("maps", []), name})
    return attrs | {ATTRS_KEY: own}


def remember_map(sdata: SpatialData, name: str) -> None:
    """Note in ``sdata.attrs`` that an image is a score map, so that pairing leaves it out."""
    own_attrs(sdata)  # raises where something else has our place
    sdata.attrs[ATTRS_KEY] = with_map(sdata.attrs, name)[ATTRS_KEY]
