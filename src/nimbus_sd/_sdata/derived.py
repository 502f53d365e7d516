"""Elements made from images, lazily: which images they come from, what they are called, where they go."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import spatialdata as sd
import xarray as xr
import zarr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.elements import ATTRS_KEY, channel_names, finest, get_image, own_attrs
from nimbus_sd._sdata.persist_remote import upload
from nimbus_sd._sdata.remote import raster_of, store_behind
from nimbus_sd._sdata.swap import swap_in
from nimbus_sd._sdata.target import check_new_name
from nimbus_sd._sdata.writable import check_writable

_KEY = "derived"  # under our key in the attributes: element name to where it came from


def source_images(sdata: SpatialData, image: str | Sequence[str] | None) -> list[str]:
    """Names of the images to work on.

    Parameters
    ----------
    sdata
        The object.
    image
        Name or names; None takes all that are neither score maps nor made by this package.

    Raises
    ------
    ElementNotFoundError
        If one does not exist.
    InputError
        If none is left, or one is named twice.
    """
    if image is None:
        own = own_attrs(sdata)
        made = {*own.get("maps", []), *own.get(_KEY, {})}
        names = [name for name in sdata.images if name not in made]
        if not names:
            msg = "the object has no image to start from; add one, or name it with image="
            raise InputError(msg)
    else:
        names = [image] if isinstance(image, str) else list(image)
        if not names or len(set(names)) < len(names):
            msg = f"image={names}: name at least one image, and each once"
            raise InputError(msg)
    for name in names:
        get_image(sdata, name)
    return names


def result_names(
    sdata: SpatialData,
    template: str,
    images: Sequence[str],
    *,
    kind: str,
    overwrite: bool,
    write: bool = False,
) -> dict[str, str]:
    """What the result of each image will be called: ``"{image}"`` in `template` stands for its name.

    Raises
    ------
    InputError
        If several results would have one name, or one can't be used, see
        :func:`~nimbus_sd._sdata.target.check_new_name`; or if they are to be written and
        there is no store, or one that can only be read.
    """
    if len(images) > 1 and "{image}" not in str(template):
        msg = f"name={template!r} for {len(images)} images; put '{{image}}' into it, which becomes their name"
        raise InputError(msg)
    in_store = sdata.is_backed() and Path(str(sdata.path)).is_dir()
    if write and store_behind(sdata) is None and not in_store:
        msg = (
            "write=True needs an object with a zarr store on a local disk, or one that was opened from a "
            "remote store; call sdata.write(path) first, or leave write out"
        )
        raise InputError(msg)
    if write:
        check_writable(sdata, kind)
    names = {each: str(template).replace("{image}", each) for each in images}
    for name in names.values():
        check_new_name(sdata, name, kind=kind, argument="name", overwrite=overwrite, write=write)
    return names


def dask_of(image: xr.DataArray) -> da.Array:
    """The pixels as a dask array."""
    data = image.data
    if isinstance(data, da.Array):
        return data
    return da.from_array(data, chunks=(1, 1024, 1024))


def add_image(
    sdata: SpatialData,
    name: str,
    pixels: da.Array,
    *,
    like: str,
    facts: Mapping[str, Any],
    write: bool,
) -> None:
    """Add an image with the channels, transformations and scales of another; nothing is read unless written.

    Parameters
    ----------
    sdata
        The object; an element of that name gives way.
    name
        Of the new image.
    pixels
        ``(c, y, x)``.
    like
        The image that it was made from.
    facts
        How, as plain values that JSON can hold; kept in the attributes.
    write
        Whether it is computed and put into the store that backs the object, too.
    """
    source = sdata.images[like]
    element = Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=list(channel_names(finest(source))),
        transformations=get_transformation(source, get_all=True),
        scale_factors=_factors(source),
    )
    if write:
        element, name = _persist(sdata, name, element, facts)
    if name in sdata:
        del sdata[name]
    sdata[name] = element
    remember(sdata, name, facts)


def remember(sdata: SpatialData, name: str, facts: Mapping[str, Any]) -> None:
    """Note in ``sdata.attrs`` what an element was made from, and how."""
    own_attrs(sdata)  # raises where something else has our place
    sdata.attrs[ATTRS_KEY] = _with_facts(sdata.attrs, name, facts)[ATTRS_KEY]


def _with_facts(attrs: Mapping[str, Any], name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(attrs.get(ATTRS_KEY, {}))
    own[_KEY] = {**own.get(_KEY, {}), name: dict(facts)}
    return {**attrs, ATTRS_KEY: own}


def _factors(element: Any) -> list[dict[str, int]] | None:
    """How much smaller each scale is than the one before; None for a single scale."""
    if not isinstance(element, xr.DataTree):
        return None
    scales = [next(iter(element[s].to_dataset().data_vars.values())) for s in element.children]
    return [
        {axis: max(round(a.sizes[axis] / b.sizes[axis]), 1) for axis in ("y", "x")}
        for a, b in pairwise(scales)
    ] or None


def _persist(sdata: SpatialData, name: str, element: Any, facts: Mapping[str, Any]) -> tuple[Any, str]:
    """Put an image into the object's store; return it as read from there, and its name there."""

    def noted(attrs: dict[str, Any], final: str) -> dict[str, Any]:
        return _with_facts(attrs, final, facts)

    remote = store_behind(sdata)
    if remote is not None:
        final = upload(remote, "images", name, element, overwrite=True, attrs=noted)
        group = zarr.open_group(remote, path=f"images/{final}", mode="r", use_consolidated=False)
        return raster_of(group), final
    store = swap_in(sdata, "images", name, element, overwrite=True, attrs=noted)
    with warnings.catch_warnings():
        # who opened the object was told of its format then
        warnings.filterwarnings("ignore", message=".*most current format", category=UserWarning)
        return sd.read_zarr(store, selection=("images",)).images[name], name
