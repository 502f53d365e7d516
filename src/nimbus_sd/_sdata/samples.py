"""Several samples with one list of markers: what every streaming function starts from."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.channels import NOT_MARKERS, select_channels
from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._core.frames import user_stacklevel
from nimbus_sd._sdata.plausible_mpp import PIXEL_SIZES, PixelSizes
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd._sdata.resolve import Pair, ResolvedSample, resolve_pairs, resolve_sample
from nimbus_sd.engine.normalization import Normalization, fit_normalization
from nimbus_sd.engine.source import ImageSource

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("nimbus_sd")

_MEANING = {
    "empty": "all pixels are 0; every score will be near 0",
    "sparse": "too few positive pixels for the quantile; the maximum is used as scale",
    "saturated": "the quantile is at the detector's full scale; bright cells can't be told apart",
    "debris": "a few very bright spots set the scale; check for debris, or lower quantile=",
}


@dataclass(frozen=True)
class SampleSet:
    """Resolved samples and the markers they have in common."""

    samples: tuple[ResolvedSample, ...]
    channels: tuple[str, ...]

    def objects(self) -> dict[str, slice]:
        """Which samples come from each object of a cohort."""
        return parts_of([sample.of for sample in self.samples])

    def part(self, which: slice) -> SampleSet:
        """Some of the samples, with all markers."""
        return SampleSet(self.samples[which], self.channels)


def parts_of(names: Sequence[str]) -> dict[str, slice]:
    """Where each object's samples are, from the objects' names in the order of the samples."""
    found: dict[str, slice] = {}
    for i, name in enumerate(names):
        found[name] = slice(found[name].start if name in found else i, i + 1)
    return found


def resolve_samples(
    sdata: SpatialData | Mapping[str, SpatialData],
    *,
    image: str | Mapping[str, str] | None,
    labels: str | Sequence[str] | None,
    channels: str | Sequence[str],
    coordinate_system: str | None = None,
    mpp: float | None = None,
    exclude: str = NOT_MARKERS,
    need_mpp: bool = True,
) -> SampleSet:
    """Resolve pairs, check pixel sizes and choose the channels; reads metadata only.

    Arguments are those of :func:`nimbus_sd.tl.predict`. All of them are taken for every
    object of a cohort.

    Raises
    ------
    InputError
        If the images have different channels, or the pixel size is unknown or can't be right.

    Warns
    -----
    NimbusWarning
        If mpp is not what an object says.
    """
    objects = {"": sdata} if isinstance(sdata, SpatialData) else sdata
    samples: list[ResolvedSample] = []
    for name, each in objects.items():
        pairs = resolve_pairs(each, image=image, labels=labels, coordinate_system=coordinate_system)
        _check_pairs(pairs, image)
        check_arguments(mpp, exclude)
        samples += (resolve_sample(each, pair, mpp=mpp, of=name) for pair in pairs)
    unknown = [s.native_image.name for s in samples if s.sample.mpp is None]
    if need_mpp and unknown:
        msg = (
            f"image {unknown[0]!r}: the pixel size is unknown. Pass mpp= (µm per px, e.g. 0.5), or store it: "
            "a Scale transformation to the coordinate system 'microns', or "
            "sdata.attrs['nimbus_sd'] = {'mpp': 0.5}"
        )
        raise InputError(msg)
    if mpp is not None:
        images = {(s.of, s.pair.image) for s in samples}
        PIXEL_SIZES.warn_unless_same(mpp, [(objects[of], name) for of, name in sorted(images)])
    elif need_mpp:
        for s in samples:
            PIXEL_SIZES.check(float(s.sample.mpp or 0), f"image {s.native_image.name!r}")
    return SampleSet(tuple(samples), common_channels([s.native_image for s in samples], channels, exclude))


def common_channels(
    images: Sequence[ImageSource], channels: str | Sequence[str], exclude: str
) -> tuple[str, ...]:
    """Choose the channels of images that must have them all, in the order of the first.

    Raises
    ------
    InputError
        If the images differ in the channels chosen, or none is left.
    ElementNotFoundError
        If a named channel does not exist.
    """
    chosen: list[str] | None = None
    for native in images:
        mine, skipped = select_channels(native.channels, channels, where=native.name, exclude=exclude)
        if chosen is None and skipped:
            log.warning(
                "channels left out: %s (pass channels='all' or a list to use them)", ", ".join(skipped)
            )
        if chosen is not None and set(mine) != set(chosen):
            differ = sorted(set(mine) ^ set(chosen))
            msg = (
                f"images {images[0].name!r} and {native.name!r} differ in channels {differ}; "
                "name those that all have with channels=[...]"
            )
            raise InputError(msg)
        chosen = chosen or mine
    return tuple(chosen or ())


def _check_pairs(pairs: Sequence[Pair], image: str | Mapping[str, str] | None) -> None:
    unused = sorted(set(image) - {p.labels for p in pairs}) if isinstance(image, Mapping) else []
    if unused:
        msg = f"image= names labels {unused} that labels= leaves out; name the same ones in both"
        raise InputError(msg)


def check_arguments(mpp: float | None, exclude: str, sizes: PixelSizes = PIXEL_SIZES) -> None:
    """Raise :class:`InputError` unless a pixel size is None or can be one, and a pattern can be compiled."""
    number = isinstance(mpp, int | float | np.number) and not isinstance(mpp, bool)
    if mpp is not None and not (number and np.isfinite(mpp) and mpp > 0):
        msg = f"mpp={mpp!r} must be a positive number of µm per px, for instance 0.5"
        raise InputError(msg)
    if mpp is not None:
        sizes.check(float(mpp))
    try:
        re.compile(exclude)
    except re.error as error:
        msg = f"exclude={exclude!r} is not a regular expression ({error})"
        raise InputError(msg) from error


def fit_over(
    samples: SampleSet,
    *,
    quantile: float,
    rule: str,
    n_threads: int,
    progress: bool,
    client: Client | None = None,
) -> Normalization:
    """Fit one normalisation over all images of a sample set, each counted once; warn of flagged channels.

    With a `client` the workers of its cluster read the images.
    """
    return fit_images(
        [s.native_image for s in samples.samples],
        samples.channels,
        quantile=quantile,
        rule=rule,
        n_threads=n_threads,
        progress=progress,
        client=client,
    )


def fit_images(
    images: Sequence[ImageSource],
    channels: Sequence[str],
    *,
    quantile: float,
    rule: str,
    n_threads: int,
    progress: bool,
    client: Client | None = None,
) -> Normalization:
    """Fit one normalisation over images, each counted once (by name); warn of flagged channels."""
    once = {image.name: image for image in images}
    total = sum(i.shape[0] * i.shape[1] for i in once.values()) * len(channels)
    with progress_bar(total, description="quantiles", unit="px", show=progress, scale=True) as advance:
        fitted = fit_normalization(
            list(once.values()),
            channels,
            quantile=quantile,
            rule=rule,
            n_threads=n_threads,
            on_progress=advance,
            client=client,
        )
    for flag, meaning in _MEANING.items():
        named = [c for c, f in zip(fitted.channels, fitted.flags, strict=True) if f == flag]
        if named:
            text = f"{flag} channels: {', '.join(named)} ({meaning})"
            warnings.warn(text, NimbusWarning, stacklevel=user_stacklevel())
    return fitted
