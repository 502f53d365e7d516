"""Cell-centred patches of one image: in which order its pixels are read, and cutting a block's cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import Interval
from nimbus_sd.arrays.patches import beyond, corners, cut, reflected
from nimbus_sd.engine.embedding.margins import MarginCache, block_edges
from nimbus_sd.engine.source import ImageSource, check_planes


@dataclass(frozen=True)
class PatchSample:
    """Cells of one image by their centres.

    Attributes
    ----------
    region
        What messages call the element that the centres come from; tells samples apart.
    image
        On its own grid.
    ids
        int64 ``(n,)``.
    centers
        Index coordinates (y, x) of the image's grid, float64 ``(n, 2)``.
    mpp
        µm per px; None where unknown.
    """

    region: str
    image: ImageSource
    ids: np.ndarray
    centers: np.ndarray
    mpp: float | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def border(self, size: int) -> np.ndarray:
        """Whether each cell's patch reaches beyond the image and is filled by reflection, bool ``(n,)``."""
        return beyond(corners(self.centers, size), size, self.image.shape)


@dataclass(frozen=True)
class PatchBlock:
    """A rectangle of the image, and the cells that are cut when it is read.

    Attributes
    ----------
    y, x
        The rectangle; all blocks of an image tile it.
    rows
        Positions of its cells in the sample, int64 ``(n,)``: those whose patch ends in it.
    """

    y: Interval
    x: Interval
    rows: np.ndarray


def plan_blocks(sample: PatchSample, size: int) -> list[PatchBlock]:
    """Divide the cells among blocks that follow the image's chunks.

    A cell belongs to the block in which its patch ends: all else that the patch needs then
    lies above or to the left, where a pass in chunk order has been already.

    Parameters
    ----------
    sample
        The cells.
    size
        Side of the patches in px.

    Returns
    -------
    Blocks of about 1,024 px a side in chunk order, without those that hold no cell.

    Raises
    ------
    InputError
        If the image is smaller than the patches, or a centre lies outside it.
    """
    check_size(sample, size)
    if not len(sample):
        return []
    shape = sample.image.shape
    edges = [block_edges(sizes) for sizes in sample.image.chunks[1:]]
    ends = _last_px(corners(sample.centers, size), size, shape)
    grid = [np.searchsorted(e, ends[:, i], side="right") - 1 for i, e in enumerate(edges)]
    flat = grid[0] * (len(edges[1]) - 1) + grid[1]
    # by rows of the image within a block: neighbours are cut from the same lines of memory
    order = np.lexsort((sample.centers[:, 1], sample.centers[:, 0], flat))
    found, first = np.unique(flat[order], return_index=True)
    blocks = []
    for index, rows in zip(found.tolist(), np.split(order, first[1:]), strict=True):
        i, j = divmod(index, len(edges[1]) - 1)
        y, x = (Interval(int(e[k]), int(e[k + 1])) for e, k in zip(edges, (i, j), strict=True))
        blocks.append(PatchBlock(y, x, rows))
    return blocks


def check_size(sample: PatchSample, size: int) -> None:
    """Raise :class:`InputError` unless every centre lies in the image, and no patch is larger than that."""
    shape, name = sample.image.shape, sample.image.name
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        msg = f"size={size!r} must be a whole number of px, at least 1, for instance 32"
        raise InputError(msg)
    if size > min(shape):
        msg = (
            f"image {name!r} is {shape[0]} x {shape[1]} px, too small for patches of {size} px; "
            f"they can have at most {min(shape)} px there"
        )
        raise InputError(msg)
    finite = np.isfinite(sample.centers).all(axis=1)
    middle = corners(np.where(finite[:, None], sample.centers, -1), 1)
    outside = beyond(middle, 1, shape)
    if outside.any():
        i = int(np.flatnonzero(outside)[0])
        msg = (
            f"{int(outside.sum())} of {len(sample)} centres of {sample.region!r} lie outside image {name!r} "
            f"({shape[0]} x {shape[1]} px), the first with id {sample.ids[i]} at index (y, x) = "
            f"{sample.centers[i].round(1).tolist()}; remove them, or check the transformations"
        )
        raise InputError(msg)


def _last_px(corner: np.ndarray, size: int, shape: tuple[int, int]) -> np.ndarray:
    """Last px (y, x) of the image that each patch needs, those that reflection shows included."""
    last = np.minimum(corner + size, np.array(shape)) - 1
    return np.maximum(last, -corner)


@dataclass(frozen=True)
class BlockPixels:
    """Pixels of a block, enough for all its patches.

    Attributes
    ----------
    planes
        ``(c, y, x)`` of the image's dtype, with what is reflected.
    corner
        First px (y, x) of each patch within `planes`, int64 ``(n, 2)``.
    size
        Side of the patches in px.
    """

    planes: np.ndarray
    corner: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.corner)

    def cut(
        self,
        which: slice | np.ndarray = slice(None),
        *,
        out: np.ndarray | None = None,
        at: np.ndarray | None = None,
    ) -> np.ndarray:
        """Patches of some of the block's cells; see :func:`nimbus_sd.arrays.patches.cut`."""
        return cut(self.planes, self.corner[which], self.size, out=out, at=at)


def open_block(
    sample: PatchSample,
    channels: list[int],
    block: PatchBlock,
    size: int,
    *,
    margins: MarginCache | None = None,
) -> BlockPixels:
    """Read the pixels that a block's patches need.

    Parameters
    ----------
    sample
        The cells.
    channels
        Positions in the image, in the order that is wanted.
    block
        From :func:`plan_blocks` with the same size.
    size
        Side of the patches in px.
    margins
        What the blocks before left; None reads everything.

    Raises
    ------
    InputError
        Naming image and channel, for pixels that are negative, NaN or infinite.
    """
    shape = sample.image.shape
    corner = corners(sample.centers[block.rows], size)
    low, high = corner.min(axis=0), corner.max(axis=0) + size
    rect = [_needed(int(a), int(b), n) for a, b, n in zip(low, high, shape, strict=True)]
    if margins is None:
        planes = sample.image.read(channels, *rect)
    else:
        planes = margins.read(sample.image, channels, (block.y, block.x), (rect[0], rect[1]))
    check_planes(sample.image, channels, planes)
    planes = planes.astype(planes.dtype.newbyteorder("="), copy=False)  # torch takes no other
    ranges = [Interval(int(a), int(b)) for a, b in zip(low, high, strict=True)]
    if ranges != rect:
        planes = _padded(planes, (rect[0], rect[1]), (ranges[0], ranges[1]), shape)
    return BlockPixels(planes, corner - low, size)


def _padded(
    planes: np.ndarray,
    rect: tuple[Interval, Interval],
    wanted: tuple[Interval, Interval],
    shape: tuple[int, int],
) -> np.ndarray:
    """Px `wanted` of an image of which `rect` was read; what lies beyond the image is reflected."""
    inside = [Interval(max(w.start, 0), min(w.stop, n)) for w, n in zip(wanted, shape, strict=True)]
    to_y, to_x = (slice(i.start - w.start, i.stop - w.start) for i, w in zip(inside, wanted, strict=True))
    out = np.empty((len(planes), wanted[0].size, wanted[1].size), planes.dtype)
    rows, columns = (
        reflected(w.start, w.stop, n) - r.start for w, n, r in zip(wanted, shape, rect, strict=True)
    )
    # one copy, then the few lines that are mirrored: indexing all of it would take four times as long
    across = slice(int(columns[to_x][0]), int(columns[to_x][-1]) + 1)
    out[:, to_y, to_x] = planes[:, int(rows[to_y][0]) : int(rows[to_y][-1]) + 1, across]
    for y in [*range(to_y.start), *range(to_y.stop, len(rows))]:
        out[:, y, to_x] = planes[:, rows[y], across]
    for x in [*range(to_x.start), *range(to_x.stop, len(columns))]:
        out[:, :, x] = planes[:, rows, columns[x]]
    return out


def _needed(start: int, stop: int, n: int) -> Interval:
    """Px of an axis that ``start..stop`` shows, reflected ones included."""
    first = min(max(start, 0), 2 * (n - 1) - (stop - 1)) if stop > n else max(start, 0)
    last = max(min(stop, n), -start + 1)
    return Interval(max(first, 0), min(last, n))


def read_block(
    sample: PatchSample,
    channels: list[int],
    block: PatchBlock,
    size: int,
    *,
    margins: MarginCache | None = None,
) -> np.ndarray:
    """Patches of a block's cells in the order of its rows: ``(n, c, size, size)`` of the image's dtype.

    Arguments and errors are those of :func:`open_block`.
    """
    return open_block(sample, channels, block, size, margins=margins).cut()


def blocks_of(samples: Sequence[PatchSample], size: int) -> list[tuple[int, PatchBlock]]:
    """Blocks of several samples in order, each with its sample's position."""
    return [(i, block) for i, sample in enumerate(samples) for block in plan_blocks(sample, size)]
