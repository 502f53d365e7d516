"""Set the background of images to 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.channels import select_channels
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.derived import add_image, result_names, source_images
from nimbus_sd._sdata.elements import ElementImage, channel_names, get_image
from nimbus_sd._sdata.foreground import dense_pixels, likely_pixels, probabilities
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd.arrays.background import disc_rows
from nimbus_sd.engine.noise import noise_bounds


def remove_background(
    sdata: SpatialData,
    *,
    image: str | Sequence[str] | None = None,
    channels: str | Sequence[str] = "all",
    probability: str | Mapping[str, str] | None = None,
    probability_channel: str | None = None,
    probability_of: str = "background",
    threshold: float = 0.5,
    radius: float = 5.0,
    min_count: int | Mapping[str, int] | None = None,
    name: str = "{image}_foreground",
    overwrite: bool = False,
    write: bool = False,
    n_threads: int = 2,
    progress: bool = True,
) -> None:
    """Set pixels of the background to 0, by given probabilities or by the density of ion counts.

    With `probability`, an image of probabilities (a pixel classification of ilastik, say) tells
    background from signal. Without, a pixel is kept if at least `min_count` other counts lie
    within `radius` of it: the same as a bound on the distance to the `min_count`-th nearest
    count. At the image's border, where part of the disc is missing, the count is scaled up by
    what is there. Lazy: chunks are filtered when they are read, and do not show in the result.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)``; they stay as they are.
    image
        Name or names; None takes all images but those that this package made, or those that
        `probability` belongs to.
    channels
        The channels to filter: ``"all"``, ``"auto"`` (leaves out DNA, histone and background)
        or names. The others are passed on as they are.
    probability
        Image with probabilities on the same grid: floats in [0, 1], or 8 or 16 bit integers,
        whose largest value stands for 1. Its name, or for several images a dict from image to
        probabilities. It has a channel for each one that is filtered, by the same names; or a
        single one for all.
    probability_channel
        Channel of `probability` (a class, say) that is to serve for all channels.
    probability_of
        ``"background"`` or ``"foreground"``: what the probabilities are those of.
    threshold
        Pixels with a probability above this are background (foreground).
    radius
        px, at least 1, of the disc in which counts are looked for.
    min_count
        Other counts that a pixel needs within `radius`: a number, or a dict by channel that has
        all of them. None finds it for each channel, reading the images once: the first quartile
        `m` of the counts in areas of that size that hold any is taken as noise, and
        ``m + 3 sqrt(m)``, at least 3, is asked for. That suits raw images; a channel that is
        bright nearly everywhere loses its dim parts.
    name
        Of the new images, where ``"{image}"`` stands for the old one's name.
    overwrite
        Replace images of those names.
    write
        Also compute them and put them into the store that backs the object.
    n_threads
        Reader threads, where `min_count` is to be found.
    progress
        Show a progress bar for that.

    Returns
    -------
    None; writes one image per image: ``(c, y, x)`` of the same dtype, channels,
    transformations and scales; how it was made in ``sdata.attrs["nimbus_sd"]["derived"]``.

    Raises
    ------
    InputError
        If probabilities don't fit the image, a number is out of range, or a name is taken;
        without probabilities, if pixels are no whole numbers ≥ 0. What is wrong with
        pixels or probabilities may show only when they are read.
    ElementNotFoundError
        If there is no such image or channel.

    References
    ----------
    Keren et al. (2018), *A structured tumor-immune microenvironment in triple negative breast
    cancer revealed by multiplexed ion beam imaging*, Cell 174:1373; Berg et al. (2019),
    *ilastik: interactive machine learning for (bio)image analysis*, Nature Methods 16:1226.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.pp.remove_background(sdata, min_count=4)
    >>> kept, all_of_it = (float(sdata[n].sum()) for n in ("fov0_image_foreground", "fov0_image"))
    >>> 0 < kept < all_of_it
    True
    """
    _check_numbers(threshold, radius, probability_of)
    found = probabilities(sdata, image, probability, channel=probability_channel)
    images = list(found) or source_images(sdata, image)
    names = result_names(sdata, name, images, kind="images", overwrite=overwrite, write=write)
    chosen = {e: select_channels(channel_names(get_image(sdata, e)), channels, where=e)[0] for e in images}
    facts: dict = {"by": "remove_background", "threshold": threshold, "probability_of": probability_of}
    if probability is None:
        needed = _needed(sdata, chosen, radius, min_count, n_threads=n_threads, progress=progress)
        facts = {"by": "remove_background", "radius_px": radius}
    made = {}
    for each in images:
        told: dict = {"image": each, "channels": chosen[each]}
        if probability is None:
            counts = {c: needed[c] for c in chosen[each]}
            pixels = dense_pixels(get_image(sdata, each), each, counts, radius=radius)
            told |= {"min_count": counts}
        else:
            pixels = likely_pixels(
                sdata, each, found[each], chosen[each], threshold=threshold, of=probability_of
            )
            told |= {"probability": found[each].image, "probability_channel": found[each].channel or ""}
        made[each] = pixels, facts | told
    for each, (pixels, told) in made.items():
        add_image(sdata, names[each], pixels, like=each, facts=told, write=write)


def _check_numbers(threshold: float, radius: float, of: str) -> None:
    if of not in ("background", "foreground"):
        msg = f"probability_of={of!r}; valid: 'background', 'foreground'"
        raise InputError(msg)
    if not 0 <= threshold < 1:
        msg = f"threshold={threshold!r} must be in [0, 1), for instance 0.5"
        raise InputError(msg)
    if not 1 <= radius <= 100:
        msg = f"radius={radius!r} must be 1 to 100 px, for instance 5"
        raise InputError(msg)


def _needed(
    sdata: SpatialData,
    chosen: Mapping[str, Sequence[str]],
    radius: float,
    min_count: int | Mapping[str, int] | None,
    *,
    n_threads: int,
    progress: bool,
) -> dict[str, int]:
    """Counts that each channel needs."""
    every = list(dict.fromkeys(c for names in chosen.values() for c in names))
    if min_count is None:
        return _found(sdata, chosen, radius, n_threads=n_threads, progress=progress)
    given = dict(min_count) if isinstance(min_count, Mapping) else dict.fromkeys(every, min_count)
    missing = [c for c in every if c not in given]
    bad = [c for c in every if c in given and not _is_count(given[c])]
    if missing or bad:
        what = f"nothing for {missing}" if missing else f"{given[bad[0]]!r} for {bad[0]!r}"
        msg = (
            f"min_count= has {what}; give whole numbers of at least 1 for all channels, or None to find them"
        )
        raise InputError(msg)
    return {c: int(given[c]) for c in every}


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _found(
    sdata: SpatialData,
    chosen: Mapping[str, Sequence[str]],
    radius: float,
    *,
    n_threads: int,
    progress: bool,
) -> dict[str, int]:
    """Bounds over all images together that have a channel."""
    sources = {e: ElementImage(e, a, channel_names(a)) for e in chosen for a in (get_image(sdata, e),)}
    area = sum(2 * half + 1 for _, half in disc_rows(radius))
    total = sum(int(np.prod(sources[e].shape)) * len(names) for e, names in chosen.items())
    groups: dict[tuple[str, ...], list[str]] = {}  # of channels that are in the same images
    for c in dict.fromkeys(c for names in chosen.values() for c in names):
        groups.setdefault(tuple(e for e in chosen if c in chosen[e]), []).append(c)
    found: dict[str, int] = {}
    with progress_bar(total, description="noise", unit="px", show=progress, scale=True) as advance:
        for images, names in groups.items():
            found |= noise_bounds(
                [sources[e] for e in images], names, area=area, n_threads=n_threads, on_progress=advance
            )
    return found
