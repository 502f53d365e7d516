"""Compare an H&E with the nuclear channel of the same tissue, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from nimbus_sd._core.stain import separate
from nimbus_sd.arrays import Interval
from nimbus_sd.arrays.registration import best_shift, correlation_map, local_contrast, pool
from nimbus_sd.engine.nuclei import block_grid
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.source import ImageSource, check_planes

_GLASS = 220  # of 255: lighter pixels of an H&E show no tissue
_WORK_UM = 1.0  # side of what is compared: nuclei are several of these wide


@dataclass(frozen=True)
class MatchConfig:
    """How blocks are compared.

    Attributes
    ----------
    block
        Side of a block in px, about.
    factor
        Px that are averaged along each axis before.
    radius
        Longest shift that is looked for, in averaged px.
    sigma
        Of the local mean that is taken off, in averaged px.
    """

    block: int
    factor: int
    radius: int
    sigma: float


class Matches(NamedTuple):
    """Blocks in the order of their rows; shifts in px of the image that does not move.

    Attributes
    ----------
    edges
        ``(n, 4)`` int64: y0, y1, x0, x1.
    correlation
        Where they lie, ``(n,)``.
    peak, shift
        The highest, ``(n,)``, and by how far the H&E lies off there, ``(n, 2)`` (dy, dx).
    contrast
        Of the nuclear channel, ``(n,)``.
    tissue
        Share of px that are neither glass nor outside the H&E, ``(n,)``.
    """

    edges: np.ndarray
    correlation: np.ndarray
    peak: np.ndarray
    shift: np.ndarray
    contrast: np.ndarray
    tissue: np.ndarray


def match_config(*, mpp: float, block_um: float, search_um: float, nucleus_radius_um: float) -> MatchConfig:
    """Sizes in px from sizes in µm, at `mpp` µm per px.

    Examples
    --------
    >>> match_config(mpp=0.325, block_um=100, search_um=12, nucleus_radius_um=3.5)
    MatchConfig(block=308, factor=3, radius=13, sigma=7.179487179487179)
    """
    factor = max(1, round(_WORK_UM / mpp))
    step = mpp * factor
    return MatchConfig(
        block=max(1, round(block_um / mpp)),
        factor=factor,
        radius=max(1, int(np.ceil(search_um / step))),
        sigma=2 * nucleus_radius_um / step,
    )


def match_blocks(
    fixed: ImageSource,
    channel: int,
    he: ImageSource,
    *,
    config: MatchConfig,
    n_threads: int = 2,
    on_progress: Callable[[int], None] | None = None,
) -> Matches:
    """Correlate the haematoxylin of an H&E with a nuclear channel on the same grid.

    Blocks are read together in rectangles that follow the chunks of `fixed`, each once.

    Parameters
    ----------
    fixed
        With the nuclear channel.
    channel
        Its position.
    he
        RGB of 8 bit (or floats of that range) on the grid of `fixed`; black px count as outside.
    config
        Sizes.
    n_threads
        Rectangles at once.
    on_progress
        Called with the number of blocks done since the last call.

    Raises
    ------
    InputError
        Naming image and channel, for pixels that are negative, NaN or infinite.
    """

    def compare(grid: tuple[list[int], list[int]]) -> list[tuple[Any, ...]]:
        y, x = (Interval(edges[0], edges[-1]) for edges in grid)
        nuclear = fixed.read([channel], y, x)
        check_planes(fixed, [channel], nuclear)
        rgb = he.read([0, 1, 2], y, x)
        found = []
        for rows, columns in product(*(pairwise(edges) for edges in grid)):
            part = (
                ...,
                slice(rows[0] - y.start, rows[1] - y.start),
                slice(columns[0] - x.start, columns[1] - x.start),
            )
            found.append((np.array([*rows, *columns]), *_compare(nuclear[0][part], rgb[part], config)))
        return found

    rows = []
    for part in read_ahead(compare, _rectangles(fixed, config.block), n_threads=n_threads):
        rows += part
        if on_progress:
            on_progress(len(part))
    edges, *values = (np.array(column) for column in zip(*rows, strict=True))
    order = np.lexsort((edges[:, 2], edges[:, 0]))
    return Matches(*(column[order] for column in (edges, *values)))


def count_blocks(fixed: ImageSource, block: int) -> int:
    """How many blocks :func:`match_blocks` makes of an image."""
    return sum((len(y) - 1) * (len(x) - 1) for y, x in _rectangles(fixed, block))


def _rectangles(fixed: ImageSource, block: int) -> Iterator[tuple[list[int], list[int]]]:
    """Borders of blocks along y and x, by rectangle."""
    rows, columns = (_block_borders(edges, block) for edges in block_grid(fixed))
    return product(rows, columns)


def _block_borders(edges: Sequence[int], block: int) -> list[list[int]]:
    """Divide an axis at the chunks' borders, and what is between them into blocks.

    Examples
    --------
    >>> _block_borders([0, 1000, 1040], 300)
    [[0, 347, 693, 1040]]
    """
    kept = [edges[0]]
    for edge in edges[1:-1]:
        if edge - kept[-1] >= block / 2 and edges[-1] - edge >= block / 2:  # no slivers
            kept.append(edge)
    out = []
    for start, stop in pairwise([*kept, edges[-1]]):
        n = max(1, round((stop - start) / block))
        out.append([start + round((stop - start) * i / n) for i in range(n + 1)])
    return out


def _compare(
    nuclear: np.ndarray, rgb: np.ndarray, config: MatchConfig
) -> tuple[float, float, np.ndarray, float, float]:
    """Correlation, peak, shift (px of the image), contrast and tissue of one block."""
    small, colours = pool(nuclear, config.factor), pool(rgb, config.factor)
    if not small.size:
        return 0.0, 0.0, np.zeros(2), 0.0, 0.0
    there = np.asarray(colours.any(axis=0))
    everywhere = np.ones(there.shape, bool)
    stained = separate(np.moveaxis(colours, 0, -1) / 255)[..., 0]
    fixed = local_contrast(small, everywhere, sigma=config.sigma)
    moving = local_contrast(stained, there, sigma=config.sigma)
    found = correlation_map(fixed, moving, (everywhere, there), radius=config.radius)
    peak, shift = best_shift(found)
    tissue = float((there & (colours.mean(axis=0) < _GLASS)).mean())
    middle = config.radius
    return float(found[middle, middle]), peak, shift * config.factor, float(fixed.std()), tissue
