"""Bright blobs of a whole image, found block by block: the same whatever the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import Interval
from nimbus_sd.arrays.blobs import (
    METHODS,
    blob_response,
    local_peaks,
    noise_reach,
    peak_offsets,
    reach,
    response_noise,
)
from nimbus_sd.engine.embedding.patches import block_edges
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.source import ImageSource, check_planes

LEAST_SNR = 5.0  # of 3,500 peaks of noise in a megapixel, one or two rise higher
_SHARE = 0.08  # of a typical bright nucleus' response


@dataclass(frozen=True)
class BlobConfig:
    """What counts as a blob.

    Attributes
    ----------
    sigma
        Of the Gaussian, px.
    min_distance
        px between two blobs, at least 1.
    method
        See :func:`~nimbus_sd.arrays.blobs.blob_response`.
    refine
        Whether places are finer than a px.
    """

    sigma: float
    min_distance: float
    method: str = "log"
    refine: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            msg = f"method={self.method!r}; valid: {', '.join(map(repr, METHODS))}"
            raise InputError(msg)
        if not (np.isfinite(self.sigma) and self.sigma >= 0.5):
            msg = f"sigma={self.sigma!r} must be at least 0.5 px, or nothing is smoothed"
            raise InputError(msg)
        if not (np.isfinite(self.min_distance) and self.min_distance >= 1):
            msg = f"min_distance={self.min_distance!r} must be at least 1 px"
            raise InputError(msg)

    @property
    def halo(self) -> int:
        """Px around a block that its blobs depend on."""
        return max(reach(self.sigma) + 2 * int(self.min_distance), noise_reach(self.judged))

    @property
    def judged(self) -> float:
        """Sigma of the Laplacian that is compared with the noise, px: maxima are looked for at half of it."""
        return self.sigma if self.method == "log" else 2 * self.sigma


class Blobs(NamedTuple):
    """Blobs in the order of their rows.

    Attributes
    ----------
    centers
        Index coordinates (y, x), float64 ``(n, 2)``.
    response
        float32 ``(n,)``, > 0.
    snr
        The Laplacian's response over what the noise around makes of it, float32 ``(n,)``; see
        :func:`~nimbus_sd.arrays.blobs.response_noise`.
    """

    centers: np.ndarray
    response: np.ndarray
    snr: np.ndarray


def find_blobs(
    image: ImageSource,
    channels: Sequence[int],
    scale: Sequence[float],
    *,
    config: BlobConfig,
    edges: tuple[Sequence[int], Sequence[int]] | None = None,
    n_threads: int = 2,
    on_progress: Callable[[int], None] | None = None,
) -> Blobs:
    """Find every blob of the mean of some channels, each ``clip(pixel / scale, 0, 1)``.

    A blob belongs to the block that holds its highest pixel; each block is read with as much
    around it as that depends on, so that there are neither doubles nor gaps at the borders.

    Parameters
    ----------
    image
        Read block by block.
    channels
        Positions.
    scale
        Intensity of each of them that counts as 1.
    config
        What counts as a blob.
    edges
        Borders of the blocks along y and x, from 0 to the size; None follows the chunks.
    n_threads
        Blocks at once.
    on_progress
        Called with the number of blocks done since the last call.

    Raises
    ------
    InputError
        Naming image and channel, for pixels that are negative, NaN or infinite.
    """
    edges = block_grid(image) if edges is None else edges

    def find(block: tuple[Interval, Interval]) -> tuple[np.ndarray, Blobs]:
        return _in_block(image, list(channels), np.asarray(scale, dtype=np.float64), config, block)

    found = []
    for part in read_ahead(find, _blocks(edges), n_threads=n_threads):
        found.append(part)
        if on_progress:
            on_progress(1)
    places = np.concatenate([part[0] for part in found])
    order = np.lexsort(places.T[::-1])
    return Blobs(*(np.concatenate(parts)[order] for parts in zip(*(p[1] for p in found), strict=True)))


def usual_threshold(found: Sequence[Blobs]) -> float:
    """Response that nuclei exceed, from all blobs of all images.

    Those that rise above the noise are weighted by the square of their response, so that
    neither the number of noise peaks nor that of empty images decides.

    Returns
    -------
    0.08 of the weighted mean of their responses; 0 if there are none.

    Examples
    --------
    >>> response, snr = np.array([0.4, 0.4, 0.01, 0.01]), np.array([50.0, 40.0, 2.0, 3.0])
    >>> usual_threshold([Blobs(np.zeros((4, 2)), response, snr)]).__round__(3)
    0.032
    """
    sure = [b.response[b.snr > LEAST_SNR].astype(np.float64) for b in found]
    response = np.concatenate([np.empty(0), *sure])
    return _SHARE * float((response**3).sum() / (response**2).sum()) if response.size else 0.0


def block_grid(image: ImageSource) -> tuple[Sequence[int], Sequence[int]]:
    """Borders of blocks of about 1,024 px that follow the chunks, along y and x."""
    y, x = (block_edges(sizes).tolist() for sizes in image.chunks[1:])
    return y, x


def _blocks(edges: tuple[Sequence[int], Sequence[int]]) -> Iterator[tuple[Interval, Interval]]:
    rows, columns = ([Interval(a, b) for a, b in pairwise(e)] for e in edges)
    return ((y, x) for y in rows for x in columns)


def _in_block(
    image: ImageSource,
    channels: list[int],
    scale: np.ndarray,
    config: BlobConfig,
    block: tuple[Interval, Interval],
) -> tuple[np.ndarray, Blobs]:
    """Highest px ``(n, 2)`` of the blobs that the block owns, and the blobs."""
    outer = [
        Interval(max(own.start - config.halo, 0), min(own.stop + config.halo, size))
        for own, size in zip(block, image.shape, strict=True)
    ]
    planes = image.read(channels, *outer)
    check_planes(image, channels, planes)
    mean = _mean(planes, scale)
    response = blob_response(mean, sigma=config.sigma, method=config.method)
    rows, columns = local_peaks(response, min_distance=config.min_distance)
    places = np.stack([rows, columns], axis=1) + np.array([o.start for o in outer])
    # added to places in the image, so that rounding does not show where a block begins
    centers = places + (peak_offsets(response, rows, columns) if config.refine else 0.0)
    inside = [(places[:, i] >= own.start) & (places[:, i] < own.stop) for i, own in enumerate(block)]
    mine = inside[0] & inside[1]
    rows, columns = rows[mine], columns[mine]
    signal = response if config.method == "log" else blob_response(mean, sigma=config.judged)
    noise = response_noise(mean, sigma=config.judged)
    snr = signal[rows, columns] / noise[rows, columns]
    return places[mine], Blobs(centers[mine], response[rows, columns], snr)


def _mean(planes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Mean over channels of what is brought to 0 ... 1, float32 ``(y, x)``."""
    out = np.zeros(planes.shape[1:], dtype=np.float32)
    for plane, one in zip(planes, scale, strict=True):
        out += np.minimum(plane / np.float32(one), 1, dtype=np.float32)
    return out / np.float32(len(planes))
