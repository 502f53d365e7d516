"""Which pixels a tile reads, computes, keeps and owns, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.rescale import AxisMap


@dataclass(frozen=True)
class Interval:
    """Half-open ``start..stop``."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of px."""
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """As an index."""
        return slice(self.start, self.stop)


def join_chunks(sizes: Sequence[int], *, least: int, longest: int | None = None) -> list[int]:
    """Borders of blocks along an axis, made of whole chunks where these are not too long.

    Parameters
    ----------
    sizes
        Px of the chunks.
    least
        Chunks are joined up to at least this; what is left at the end joins its neighbour if it
        is less than half as wide.
    longest
        Longer blocks are divided evenly; None never divides a chunk.

    Returns
    -------
    Px, ascending, from 0 to the sum of the chunks.

    Examples
    --------
    >>> join_chunks([256] * 9, least=1024)
    [0, 1024, 2304]
    >>> join_chunks([5000, 600], least=1024, longest=2048)
    [0, 1666, 3333, 5000, 5600]
    """
    edges, stop = [0], 0
    for size in sizes:
        stop += int(size)
        if longest is not None and stop - edges[-1] > longest:
            start, parts = edges[-1], -(-(stop - edges[-1]) // longest)
            edges += [start + (stop - start) * k // parts for k in range(1, parts + 1)]
        elif stop - edges[-1] >= least:
            edges.append(stop)
    if edges[-1] < stop:
        narrow = len(edges) > 1 and stop - edges[-1] < least // 2
        edges[-1 if narrow else len(edges) :] = [stop]
    return edges


@dataclass(frozen=True)
class Tile:
    """One tile: per axis (y, x), in model px and in full-resolution px.

    Attributes
    ----------
    core
        Model px whose probabilities are kept; cores tile the padded image.
    outer
        Core plus halo, clipped at the padded image: what the network sees.
    read
        Full-resolution px of the image that `outer` samples from, `owned` included.
    owned
        Full-resolution px whose probability comes from `core`; they tile the image.
    """

    index: int
    core: tuple[Interval, Interval]
    outer: tuple[Interval, Interval]
    read: tuple[Interval, Interval]
    owned: tuple[Interval, Interval]

    @property
    def outer_shape(self) -> tuple[int, int]:
        """(y, x) of the network's input in model px."""
        return self.outer[0].size, self.outer[1].size

    @property
    def kept(self) -> tuple[slice, slice]:
        """Where the core lies within the outer array."""
        y, x = (
            slice(c.start - o.start, c.stop - o.start) for c, o in zip(self.core, self.outer, strict=True)
        )
        return y, x


@dataclass(frozen=True)
class TilePlan:
    """All tiles of one image; iterating yields :class:`Tile` in row-major order."""

    y: AxisMap
    x: AxisMap
    tile: int
    halo: int

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tiles along y and x."""
        return tuple(-(-a.model_size // self.tile) for a in (self.y, self.x))  # type: ignore[return-value]

    def __len__(self) -> int:
        return self.grid[0] * self.grid[1]

    def __iter__(self) -> Iterator[Tile]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < len(self):
            raise IndexError(index)
        steps = divmod(index, self.grid[1])
        y, x = (self._axis(a, i) for a, i in zip((self.y, self.x), steps, strict=True))
        return Tile(index, *((a, b) for a, b in zip(y, x, strict=True)))

    def _axis(self, axis: AxisMap, i: int) -> tuple[Interval, Interval, Interval, Interval]:
        core = Interval(i * self.tile, min((i + 1) * self.tile, axis.model_size))
        outer = Interval(max(core.start - self.halo, 0), min(core.stop + self.halo, axis.model_size))
        lower, upper, _ = axis.linear(outer.start, outer.stop)
        nearest = axis.nearest(outer.start, outer.stop)
        owned = Interval(*axis.owned(core.start, core.stop))
        touched = [int(i) for a in (lower, upper, nearest) for i in (a.min(), a.max() + 1)]
        if owned.size:
            touched += [owned.start, owned.stop]
        return core, outer, Interval(min(touched), max(touched)), owned

    @property
    def halo_ratio(self) -> float:
        """Pixels computed over pixels kept."""
        kept = self.y.model_size * self.x.model_size
        return sum(t.outer[0].size * t.outer[1].size for t in self) / kept


def plan_tiles(
    shape: tuple[int, int], *, factor: float, tile: int, halo: int = 96, stride: int = 16
) -> TilePlan:
    """Plan the tiles of an image.

    Parameters
    ----------
    shape
        Full-resolution (y, x) px.
    factor
        Full-resolution px per model px.
    tile
        Side of a core in model px, a multiple of `stride`.
    halo, stride
        Context and alignment of the model in model px.

    Raises
    ------
    InputError
        If `tile` is not a positive multiple of `stride`.

    Examples
    --------
    >>> plan = plan_tiles((1024, 1000), factor=2.0, tile=256)
    >>> plan.grid, plan[0].outer_shape
    ((2, 2), (352, 352))
    """
    if tile < stride or tile % stride:
        valid = max(stride, round(tile / stride) * stride)
        msg = f"tile={tile} must be a positive multiple of the model's stride {stride}, for instance {valid}"
        raise InputError(msg)
    halo = -(-halo // stride) * stride
    # reflect padding needs two px at the bottleneck
    y, x = (AxisMap(n, factor, stride=stride, minimum=max(32, 2 * stride)) for n in shape)
    return TilePlan(y=y, x=x, tile=tile, halo=halo)
