"""Find nuclei as bright blobs: cell centres without a segmentation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import PointsModel
from spatialdata.transformations import get_transformation

from nimbus_sd._core.channels import look_nuclear, select_channels
from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.derived import remember, result_names, source_images
from nimbus_sd._sdata.elements import ElementImage, channel_names, get_image, mpp_of, systems
from nimbus_sd._sdata.haematoxylin import HAEMATOXYLIN, check_stain, haematoxylin_images, he_names
from nimbus_sd._sdata.he import looks_like_he
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd.engine.normalization import Normalization, fit_normalization
from nimbus_sd.engine.nuclei import LEAST_SNR, BlobConfig, Blobs, block_grid, find_blobs, usual_threshold
from nimbus_sd.engine.source import ImageSource

_QUANTILE = 0.999


def detect_nuclei(
    sdata: SpatialData,
    *,
    image: str | Sequence[str] | None = None,
    channel: str | Sequence[str] | None = None,
    stain: str | None = None,
    diameter_um: float = 7.0,
    sigma: float | None = None,
    method: str = "log",
    threshold: float | None = None,
    min_distance: float | None = None,
    refine: bool = True,
    name: str = "nuclei",
    coordinate_system: str | None = None,
    mpp: float | None = None,
    overwrite: bool = False,
    n_threads: int = 2,
    progress: bool = True,
) -> None:
    """Find nuclei in the nuclear channels and write their centres as points.

    Each channel is divided by its 99.9th percentile over all images and clipped at 1, and
    the mean of the channels is taken. The Laplacian of a Gaussian, the size of a nucleus,
    answers with a peak at each one. Streamed over blocks; the result does not depend on
    them, nor on the chunks. It is made for nuclei of about one size: flat discs of 1.5 times the
    diameter or more answer along their rim and give several points; touching nuclei of very
    different sizes, and long ones, are found badly as well. Points or labels of a trained
    segmentation serve wherever centres are asked for.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)``, finite and ≥ 0.
    image
        Name or names; None takes all images but those that this package made.
    channel
        Nuclear channel or channels; None takes those whose names look like DNA, DAPI,
        Hoechst or histone.
    stain
        ``"haematoxylin"``: the images are H&E, three channels (red, green, blue) of uint8, and
        nuclei are found in their haematoxylin, unmixed by colour deconvolution
        (as :func:`skimage.color.rgb2hed`) where they are read. `image` None takes then all
        images of that kind.
    diameter_um
        Diameter of nuclei, µm. In crowded tissue the best value is somewhat smaller.
    sigma
        Of the Gaussian, px, in place of the diameter; a disc answers best to
        ``diameter / (2 sqrt(2))``.
    method
        ``"log"``, the Laplacian, or ``"local_maxima"`` of the image smoothed with a
        Gaussian of half that `sigma` (of the whole of it where you give one).
    threshold
        Nuclei answer with more than this, where 1 would be the 99.9th percentile of
        intensity; higher finds fewer and surer ones. None asks two things. A peak must stand
        out: the Laplacian there (for local maxima with twice their sigma) is more than 5 times
        what the noise around it makes, measured from px to px, so for dark and bright places
        apart. And it must answer with more than 0.08 of what bright nuclei do: the mean over
        all peaks that stand out, of all images, weighted by the square of the answer. Empty
        fields and places so get next to no points, and lower nothing elsewhere.
    min_distance
        px between two nuclei, at least 1; a third of the diameter by default
        (`sigma` if you give one).
    refine
        Fit centres finer than a pixel.
    name
        Of the points element. For several images, ``f"{image}_{name}"``, unless ``"{image}"``
        is in it.
    coordinate_system
        The one that the points get; None: all of the image's.
    mpp
        µm per px; None looks for it in the object. Not needed with `sigma`.
    overwrite
        Replace elements of those names.
    n_threads
        Blocks at once.
    progress
        Show a progress bar.

    Returns
    -------
    None; writes one points element per image: columns ``x`` and ``y`` (float64, px of the
    image, the first pixel's middle at 0.5), ``response`` (float32), index 0 … n - 1 by rows,
    transformations of the image. How they were found is in
    ``sdata.attrs["nimbus_sd"]["derived"]``.

    Raises
    ------
    InputError
        If there is no nuclear channel, the pixel size is unknown, a number is out of range,
        pixels are not finite and ≥ 0, an image is no H&E where a stain is named, or a name is taken.
    ElementNotFoundError
        If there is no such image or channel.

    References
    ----------
    Lindeberg (1998), *Feature detection with automatic scale selection*, Int. J. Comput. Vis. 30:79.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.pp.detect_nuclei(sdata, progress=False)
    >>> list(sdata["nuclei"].columns)
    ['x', 'y', 'response']
    """
    check_stain(stain, channel)
    images = source_images(sdata, image) if stain is None else he_names(sdata, image)
    template = name if len(images) == 1 or "{image}" in str(name) else f"{{image}}_{name}"
    names = result_names(sdata, template, images, kind="points", overwrite=overwrite)
    _check_threshold(threshold)
    places = {each: _transformations(sdata, each, coordinate_system) for each in images}
    channels = [HAEMATOXYLIN] if stain else nuclear_channels(sdata, images, channel)
    sources = haematoxylin_images(sdata, images) if stain else _images(sdata, images)
    configs = {
        each: BlobConfig(
            *_sizes(sdata, each, diameter_um, sigma=sigma, mpp=mpp, method=method, min_distance=min_distance),
            method=method,
            refine=refine,
        )
        for each in images
    }
    fitted = fit_normalization(list(sources.values()), channels, quantile=_QUANTILE, n_threads=n_threads)
    found = _find(sources, fitted, configs, n_threads=n_threads, progress=progress)
    least_snr = LEAST_SNR if threshold is None else -np.inf
    level = usual_threshold(list(found.values())) if threshold is None else float(threshold)
    kept = {each: (blobs.response > level) & (blobs.snr > least_snr) for each, blobs in found.items()}
    made = {each: _points(blobs, kept[each], places[each]) for each, blobs in found.items()}
    _warn_of_none(kept, level)
    for each, points in made.items():  # all are there, so nothing can go wrong half-way
        if names[each] in sdata:
            del sdata[names[each]]
        sdata[names[each]] = points
        facts = {
            "by": "detect_nuclei",
            "image": each,
            "channels": list(channels),
            "scale": list(fitted.scale),
            "threshold": level,
            **({"least_snr": least_snr} if threshold is None else {}),
            "method": method,
            "sigma_px": configs[each].sigma,
            "min_distance_px": configs[each].min_distance,
        }
        remember(sdata, names[each], facts)


def _images(sdata: SpatialData, names: Sequence[str]) -> dict[str, ImageSource]:
    arrays = {each: get_image(sdata, each) for each in names}
    return {each: ElementImage(each, array, channel_names(array)) for each, array in arrays.items()}


def _check_threshold(threshold: float | None) -> None:
    number = isinstance(threshold, int | float | np.number) and not isinstance(threshold, bool)
    if threshold is not None and not (number and np.isfinite(threshold) and threshold >= 0):
        msg = f"threshold={threshold!r} must be a number of at least 0, for instance 0.02, or None"
        raise InputError(msg)


def _transformations(sdata: SpatialData, image: str, system: str | None) -> dict:
    there = systems(sdata, "images", image)
    if system is not None and system not in there:
        msg = f"image {image!r} has no coordinate system {system!r}; valid: {', '.join(there)}"
        raise InputError(msg)
    every = get_transformation(sdata.images[image], get_all=True)
    return dict(every) if system is None else {system: every[system]}


def nuclear_channels(
    sdata: SpatialData, images: Sequence[str], channel: str | Sequence[str] | None
) -> list[str]:
    """Nuclear channels that every image has, in the order of the first one, or as they were named."""
    channels: list[str] = []
    for i, each in enumerate(images):
        available = channel_names(get_image(sdata, each))
        wanted = "all" if channel is None else [channel] if isinstance(channel, str) else list(channel)
        chosen, _ = select_channels(available, wanted, where=each)
        if channel is None:
            chosen = look_nuclear(chosen)
        channels = chosen if i == 0 else [c for c in channels if c in chosen]
        if not channels:
            others = f", nor one that {', '.join(map(repr, images[:i]))} has too" if i else ""
            he = ", or pass stain='haematoxylin' for an H&E" if looks_like_he(sdata.images[each]) else ""
            msg = (
                f"image {each!r} has no channel that looks nuclear{others}; name it with channel={he}. "
                f"Channels: {', '.join(available)}"
            )
            raise InputError(msg)
    return channels


def _sizes(
    sdata: SpatialData,
    image: str,
    diameter_um: float,
    *,
    sigma: float | None,
    mpp: float | None,
    method: str,
    min_distance: float | None,
) -> tuple[float, float]:
    """Sigma of the Gaussian and distance between nuclei, px."""
    if sigma is not None:
        return sigma, max(sigma, 1.0) if min_distance is None else min_distance
    mpp = mpp_of(sdata, "images", image) if mpp is None else mpp
    if mpp is None:
        msg = f"image {image!r}: the pixel size is unknown; pass mpp= (µm per px), or sigma= in px"
        raise InputError(msg)
    for told, value in (("mpp", mpp), ("diameter_um", diameter_um)):
        if not (np.isfinite(value) and value > 0):
            msg = f"{told}={value!r} must be a positive number"
            raise InputError(msg)
    best = diameter_um / mpp / np.sqrt(8)
    if best < 0.5:
        msg = (
            f"image {image!r}: nuclei of {diameter_um:g} µm are {diameter_um / mpp:.2g} px wide at {mpp:g} "
            "µm per px, too few to find them; check diameter_um= and mpp="
        )
        raise InputError(msg)
    distance = max(float(best), 1.0) if min_distance is None else min_distance
    return float(best if method == "log" else max(best / 2, 0.5)), distance


def _find(
    sources: Mapping[str, ImageSource],
    fitted: Normalization,
    configs: dict[str, BlobConfig],
    *,
    n_threads: int,
    progress: bool,
) -> dict[str, Blobs]:
    found = {}
    grids = {name: block_grid(source) for name, source in sources.items()}
    total = sum((len(y) - 1) * (len(x) - 1) for y, x in grids.values())
    with progress_bar(total, description="nuclei", unit="block", show=progress) as advance:
        for name, source in sources.items():
            found[name] = find_blobs(
                source,
                [source.channels.index(c) for c in fitted.channels],
                fitted.scale,
                config=configs[name],
                edges=grids[name],
                n_threads=n_threads,
                on_progress=advance,
            )
    return found


def _points(blobs: Blobs, keep: np.ndarray, transformations: dict) -> PointsModel:
    y, x = blobs.centers[keep].T + 0.5
    frame = pd.DataFrame({"x": x, "y": y, "response": blobs.response[keep]})
    return PointsModel.parse(frame, coordinates={"x": "x", "y": "y"}, transformations=transformations)


def _warn_of_none(kept: dict[str, np.ndarray], threshold: float) -> None:
    for image, keep in kept.items():
        if not keep.any():
            warnings.warn(
                f"image {image!r}: no nuclei found; lower threshold= (now {threshold:g}), or check the "
                "channel and diameter_um=",
                NimbusWarning,
                stacklevel=3,
            )
