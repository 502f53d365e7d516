"""Does an H&E lie where the fluorescence of its section does? Asked block by block."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.elements import channel_names, get_image
from nimbus_sd._sdata.image_pair import ImagePair, resolve_image_pair
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd._sdata.registered_cells import note, regions_of, warn_of_cells, well_registered
from nimbus_sd.arrays.registration import judge, usual_contrast
from nimbus_sd.engine.registration import Matches, count_blocks, match_blocks, match_config
from nimbus_sd.pp._detect_nuclei import nuclear_channels

_EDGES = ("y0", "y1", "x0", "x1")
_NAMED = 3  # blocks in a warning


def registration_qc(
    sdata: SpatialData,
    *,
    he: str | Mapping[str, str],
    image: str | None = None,
    nuclear: str | None = None,
    block_um: float = 100.0,
    nucleus_radius_um: float = 3.5,
    search_um: float = 12.0,
    min_correlation: float = 0.25,
    table: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    n_threads: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Check block by block that nuclei of an H&E lie on those of the fluorescence image.

    Where nuclei are, haematoxylin is: both images are averaged to about 1 µm per px on the
    grid of `image`, the H&E's haematoxylin is unmixed (colour deconvolution as
    :func:`skimage.color.rgb2hed`), trends wider than a few nuclei are taken off, and the two
    are correlated at every shift up to `search_um`. A block is well registered if the best
    correlation is high enough and found within a nucleus' radius. A block with hardly any
    nuclei in `image` can't be judged, and counts as the nearest one that can. Streamed by
    rectangles that follow the chunks; where the grids are the same, each chunk is read once.

    Parameters
    ----------
    sdata
        Object with both images.
    he
        Name of the H&E, ``(3, y, x)`` uint8, or ``{H&E: image}`` for several sections.
    image
        Name of the image with a nuclear channel, ``(c, y, x)``; None if `he` names it.
    nuclear
        Name of that channel; None takes the first whose name looks like DNA, DAPI, Hoechst or
        histone.
    block_um
        Side of a block, µm, about.
    nucleus_radius_um
        How far the H&E may lie off, µm.
    search_um
        How far is looked, µm, along each axis.
    min_correlation
        What the best correlation must be; images that have nothing to do with each other
        reach 0.1 to 0.2.
    table
        Name of a table whose cells lie in `image`: those in badly registered blocks are
        marked.
    coordinate_system
        The one that the images share; None takes the first in which they overlap.
    mpp
        µm per px of `image`; None looks for it in the object.
    n_threads
        Rectangles at once.
    progress
        Show a progress bar.

    Returns
    -------
    pandas.DataFrame
        One row per block: ``he``, ``image``; ``y``, ``x`` its middle in the coordinate system;
        ``y0, y1, x0, x1`` px of `image`; ``correlation`` as the images lie; ``peak`` the best
        one, ``dy``, ``dx`` µm along the axes of `image` by which the H&E lies off there, and
        ``shift`` its length; ``tissue`` share of the H&E that is neither glass nor outside
        it; ``nuclei`` contrast of the nuclear channel, where usual is 1; ``judged`` and
        ``ok``, bool. NaN where a block can't be judged.
        With `table`, writes ``obs["registered"]``, bool, False for cells in blocks that are
        not ok (and without a pixel in the labels, or outside one of the images), and
        ``uns["registration"]``.

    Raises
    ------
    ElementNotFoundError
        If there is no such image, channel or table.
    InputError
        If the images share no coordinate system or don't overlap, `he` is no H&E, no channel
        looks nuclear or it is blank, the pixel size is not known, a number is out of range, or
        the table's cells lie elsewhere.

    Warns
    -----
    NimbusWarning
        Naming blocks that are badly registered; counting rows of labels without a cell, and
        cells that the H&E does not show.

    References
    ----------
    Ruifrok and Johnston (2001), *Quantification of histochemical staining by color
    deconvolution*.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_sections(shape=(256, 256))
    >>> found = nb.pp.registration_qc(sdata, he="p0s0_he", image="p0s0_if", table="table", progress=False)
    >>> bool(found["ok"].all()), bool(sdata["table"].obs["registered"].all())
    (True, True)
    """
    sizes = {"block_um": block_um, "nucleus_radius_um": nucleus_radius_um, "search_um": search_um}
    _check_numbers(sizes, min_correlation)
    pairs = {}
    for one, other in _names(he, image).items():
        pair = resolve_image_pair(sdata, he=one, image=other, coordinate_system=coordinate_system, mpp=mpp)
        pairs[one] = (pair, match_config(mpp=pair.mpp, **sizes), _channel(sdata, other, nuclear))
        if table is not None:
            regions_of(sdata, table, other, pair.system)
    total = sum(count_blocks(pair.image, config.block) for pair, config, _ in pairs.values())
    frames = {}
    with progress_bar(total, description="registration", unit="block", show=progress) as advance:
        for one, (pair, config, channel) in pairs.items():
            found = match_blocks(
                pair.image, channel, pair.he, config=config, n_threads=n_threads, on_progress=advance
            )
            frames[one] = _frame(
                one, pair, found, radius=nucleus_radius_um, least=min_correlation, channel=channel
            )
    marks = {}
    if table is not None:
        for one, frame in frames.items():
            marks[one] = well_registered(
                sdata, table, pairs[one][0], edges=frame[list(_EDGES)].to_numpy(), ok=frame["ok"].to_numpy()
            )
        warn_of_cells(table, marks)
        for one, mark in marks.items():  # all are there, so nothing can go wrong half-way
            facts = _facts(frames[one], pairs[one][0]) | sizes | {"min_correlation": min_correlation}
            note(sdata.tables[table], mark.rows, mark.good, facts)
    for one, frame in frames.items():
        left_out = marks[one].bad if one in marks else None
        _warn(one, frame, left_out, radius=nucleus_radius_um, least=min_correlation)
    return pd.concat(frames.values(), ignore_index=True)


def _check_numbers(sizes: Mapping[str, float], min_correlation: float) -> None:
    for name, value in sizes.items():
        if not (np.isfinite(value) and value > 0):
            msg = f"{name}={value!r} must be a positive number of µm"
            raise InputError(msg)
    if not sizes["nucleus_radius_um"] <= sizes["search_um"] <= sizes["block_um"] / 2:
        msg = (
            f"search_um={sizes['search_um']:g} must be at least nucleus_radius_um "
            f"({sizes['nucleus_radius_um']:g}), and at most half of block_um ({sizes['block_um']:g})"
        )
        raise InputError(msg)
    if not 0 <= min_correlation < 1:
        msg = f"min_correlation={min_correlation!r} must be from 0 to below 1, for instance 0.25"
        raise InputError(msg)


def _names(he: str | Mapping[str, str], image: str | None) -> dict[str, str]:
    """H&E to image."""
    if isinstance(he, str) and isinstance(image, str):
        return {he: image}
    if isinstance(he, Mapping) and he and image is None:
        return dict(he)
    msg = f"he={he!r}, image={image!r}: give a name each, or he={{H&E: image}} and no image="
    raise InputError(msg)


def _channel(sdata: SpatialData, image: str, nuclear: str | None) -> int:
    """Position of the nuclear channel."""
    chosen = nuclear_channels(sdata, [image], nuclear)[0]
    return channel_names(get_image(sdata, image)).index(chosen)


def _frame(
    he: str, pair: ImagePair, found: Matches, *, radius: float, least: float, channel: int
) -> pd.DataFrame:
    y, x = found.edges[:, :2].mean(axis=1), found.edges[:, 2:].mean(axis=1)
    offset = found.shift * pair.mpp
    length = np.hypot(*offset.T)
    judged, ok = judge(
        np.column_stack([y, x]), found.contrast, found.peak, length, radius=radius, least=least
    )
    if not judged.any():
        msg = (
            f"image {pair.image.name!r}: channel {pair.image.channels[channel]!r} shows no nuclei; name the "
            "nuclear channel with nuclear="
        )
        raise InputError(msg)
    world = (pair.to_world @ np.stack([x, y, np.ones_like(x)]))[:2]
    frame = pd.DataFrame({"he": he, "image": pair.image.name, "y": world[1], "x": world[0]})
    frame[list(_EDGES)] = found.edges
    known = {
        "correlation": found.correlation,
        "peak": found.peak,
        "dy": offset[:, 0],
        "dx": offset[:, 1],
        "shift": length,
    }
    for name, values in known.items():
        frame[name] = np.where(judged, values, np.nan)
    return frame.assign(
        tissue=found.tissue, nuclei=found.contrast / usual_contrast(found.contrast), judged=judged, ok=ok
    )


def _facts(frame: pd.DataFrame, pair: ImagePair) -> dict[str, Any]:
    judged = frame[frame["judged"]]
    return {
        "he": str(frame["he"].iloc[0]),
        "image": pair.image.name,
        "coordinate_system": pair.system,
        "mpp": pair.mpp,
        "n_blocks": len(frame),
        "n_judged": len(judged),
        "n_bad": int((~frame["ok"]).sum()),
        "median_shift_um": float(judged["shift"].median()),
        "median_peak": float(judged["peak"].median()),
    }


def _named(bad: pd.DataFrame, least: float) -> str:
    """Where the first bad blocks are, and what is wrong with them."""
    told = [
        f"at (y, x) = ({b.y:.0f}, {b.x:.0f}) "
        + (f"nothing matches ({b.peak:.2f})" if b.peak < least else f"by ({b.dy:.1f}, {b.dx:.1f}) µm")
        for b in bad.head(_NAMED).itertuples()
    ]
    more = f", and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return f"Blocks: {', '.join(told)}{more}"


def _warn(he: str, frame: pd.DataFrame, left_out: int | None, *, radius: float, least: float) -> None:
    judged = frame[frame["judged"]]
    low = judged["peak"] < least
    far = ~low & (judged["shift"] > radius)
    if not (low.any() or far.any()):
        return
    cells = "" if left_out is None else f", and {left_out} cells in them are left out (obs['registered'])"
    text = (
        f"H&E {he!r}: {int((low | far).sum())} of {len(judged)} blocks are badly registered: "
        f"{int(far.sum())} lie off by more than {radius:g} µm, {int(low.sum())} correlate "
        f"with less than {least:g}{cells}. {_named(judged[low | far], least)}"
    )
    dy, dx = judged.loc[~low, "dy"].median(), judged.loc[~low, "dx"].median()
    if np.hypot(dy, dx) > radius:
        text += (
            f". All of it lies off by about ({dy:.1f}, {dx:.1f}) µm (y, x): correct its transformation, for "
            "instance with nb.pp.register_landmarks"
        )
    elif low.mean() > 0.5:
        text += (
            ". Most of it matches nowhere near: is it the same section, the right channel (nuclear=), and "
            "roughly in place (nb.pp.register_landmarks)?"
        )
    warnings.warn(text, NimbusWarning, stacklevel=3)
