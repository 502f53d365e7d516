"""Fields under review: which rows of the table lie where, and pixels of any rectangle at any zoom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import anndata as ad
import numpy as np
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.resolve import ResolvedSample, resolve_pairs, resolve_sample
from nimbus_sd.arrays import Interval
from nimbus_sd.pl._view import Window, read_image, read_labels

TILE = 256
_SAMPLES = 5  # a grid of 5 x 5 windows stands for a slide that is too large to be read for its contrast


@dataclass(frozen=True, eq=False)
class Field:
    """One labels element, its image, and its rows of the table.

    Attributes
    ----------
    sdata
        The object.
    sample
        Image and labels on one grid.
    ids
        Label ids, ascending.
    rows
        Rows of the table, int64, in the order of `ids`.
    xy
        Centres (x, y) on the grid, px, float32 ``(n, 2)``.
    """

    sdata: SpatialData
    sample: ResolvedSample
    ids: np.ndarray
    rows: np.ndarray
    xy: np.ndarray

    @property
    def name(self) -> str:
        """The labels element's."""
        return self.sample.pair.labels

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) px."""
        return self.sample.sample.labels.shape

    @property
    def channels(self) -> tuple[str, ...]:
        """Of the image."""
        return self.sample.native_image.channels

    @cached_property
    def n_levels(self) -> int:
        """Zoom levels; in the last, a step of ``2 ** level`` px brings the field into one tile."""
        level = 0
        while max(self.shape) > TILE << level:
            level += 1
        return level + 1

    def has_tile(self, level: int, ty: int, tx: int) -> bool:
        """Whether the tile lies within the field."""
        side = TILE << max(level, 0)
        return (
            0 <= level < self.n_levels and 0 <= ty * side < self.shape[0] and 0 <= tx * side < self.shape[1]
        )

    def pixels(
        self, channels: Sequence[int], y0: int, x0: int, size: tuple[int, int], step: int
    ) -> np.ndarray:
        """``(c, *size)`` float32 from px `y0`, `x0` on, `step` px of the field each; 0 beyond the image."""
        out = np.zeros((len(channels), *size), dtype=np.float32)
        if (found := self._window(y0, x0, size, step)) is None:
            return out
        picture = read_image(self.sdata, self.sample, channels, found)
        y, x, inside = _places(picture.extent, picture.pixels.shape[-2:], self.shape, (y0, x0), size, step)
        out[:, inside] = picture.pixels[:, y[:, None], x][:, inside]
        return out

    def cells(self, y0: int, x0: int, size: tuple[int, int], step: int) -> np.ndarray:
        """uint32 ``size``: 1 + place in `ids`, 0 where there is no cell of the table."""
        out = np.zeros(size, dtype=np.uint32)
        if not len(self.ids) or (found := self._window(y0, x0, size, step)) is None:
            return out
        picture = read_labels(self.sdata, self.sample, found)
        y, x, inside = _places(picture.extent, picture.pixels.shape, self.shape, (y0, x0), size, step)
        ids = picture.pixels[y[:, None], x].astype(np.int64)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(inside & (self.ids[place] == ids) & (ids != 0), place + 1, 0).astype(np.uint32)

    def sampled(self, channel: int) -> np.ndarray:
        """Pixels that stand for a channel, float32 ``(n,)``, from at most a few thousand px a side."""
        height, width = self.shape
        step = 1
        while max(height, width) > 1024 * step:
            step *= 2
        if step <= 4:
            return self.pixels([channel], 0, 0, (-(-height // step), -(-width // step)), step).ravel()
        starts = [
            (int(y), int(x))
            for y in np.linspace(0, height - TILE, _SAMPLES)
            for x in np.linspace(0, width - TILE, _SAMPLES)
        ]
        return np.concatenate([self.pixels([channel], y, x, (TILE, TILE), 1).ravel() for y, x in starts])

    def _window(self, y0: int, x0: int, size: tuple[int, int], step: int) -> Window | None:
        y = Interval(max(y0, 0), min(y0 + size[0] * step, self.shape[0]))
        x = Interval(max(x0, 0), min(x0 + size[1] * step, self.shape[1]))
        return Window(y, x, step) if y.stop > y.start and x.stop > x.start else None


def _places(
    extent: tuple[float, float, float, float],
    shape: tuple[int, ...],
    field: tuple[int, int],
    start: tuple[int, int],
    size: tuple[int, int],
    step: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of a picture that tile px show, and which of them lie in the field."""
    left, right, bottom, top = extent
    found, inside = [], []
    for axis, (low, high) in enumerate(((top, bottom), (left, right))):
        centre = start[axis] + (np.arange(size[axis]) + 0.5) * step
        where = ((centre - low) / (high - low) * shape[axis]).astype(np.int64)
        found.append(np.clip(where, 0, shape[axis] - 1))
        # the last px of a coarse level may reach beyond the border
        inside.append((centre > 0) & (centre - step / 2 < field[axis]))
    return found[0], found[1], inside[0][:, None] & inside[1]


class RowPlaces:
    """Field and place in it of every row of the table; a mapping without an object per row."""

    def __init__(self, rows: Sequence[np.ndarray], n: int) -> None:
        self._field = np.full(n, -1, dtype=np.int32)
        self._place = np.zeros(n, dtype=np.int64)
        for i, each in enumerate(rows):
            self._field[each] = i
            self._place[each] = np.arange(len(each))

    def __contains__(self, row: int) -> bool:
        return 0 <= row < len(self._field) and bool(self._field[row] >= 0)

    def __getitem__(self, row: int) -> tuple[int, int]:
        return int(self._field[row]), int(self._place[row])

    def known(self) -> np.ndarray:
        """Rows that lie in a field."""
        return np.flatnonzero(self._field >= 0)


def open_fields(
    sdata: SpatialData, adata: ad.AnnData, *, table: str, image: str | Mapping[str, str] | None
) -> list[Field]:
    """The fields that a table annotates, in the object's order.

    Raises
    ------
    InputError
        If the table annotates no labels of the object or has no coordinates, or images can't be paired.
    ElementNotFoundError
        If an image does not exist.
    """
    attrs = adata.uns.get(TableModel.ATTRS_KEY, {})
    region_key, instance_key = attrs.get(TableModel.REGION_KEY_KEY), attrs.get(TableModel.INSTANCE_KEY)
    if region_key is None or instance_key is None:
        msg = f"table {table!r} annotates no labels; link it with TableModel.parse(..., region=, region_key=)"
        raise InputError(msg)
    if "spatial" not in adata.obsm or np.shape(adata.obsm["spatial"])[1:] != (2,):
        msg = (
            f"table {table!r} has no coordinates obsm['spatial'] (x, y); nb.tl.predict writes them, or set "
            "them to the cells' centres"
        )
        raise InputError(msg)
    region = adata.obs[region_key].astype(str).to_numpy()
    names = [name for name in sdata.labels if name in set(region)]
    if not names:
        msg = (
            f"table {table!r} annotates {sorted(set(region))[:5]}; labels of the object: {list(sdata.labels)}"
        )
        raise InputError(msg)
    if isinstance(image, Mapping) and (unknown := sorted(set(image) - set(names))):
        msg = f"image= names {unknown}, which table {table!r} does not annotate; valid: {names}"
        raise ElementNotFoundError(msg)
    instance = adata.obs[instance_key].to_numpy().astype(np.int64)
    pairs = resolve_pairs(sdata, image=image, labels=names)
    return [_field(sdata, adata, resolve_sample(sdata, pair), region, instance) for pair in pairs]


def _field(
    sdata: SpatialData, adata: ad.AnnData, sample: ResolvedSample, region: np.ndarray, instance: np.ndarray
) -> Field:
    rows = np.flatnonzero(region == sample.pair.labels)
    rows = rows[np.argsort(instance[rows], kind="stable")]
    ids = instance[rows]
    if (twice := ids[1:][ids[1:] == ids[:-1]]).size:
        msg = f"cell {twice[0]} of {sample.pair.labels!r} has two rows in the table; drop one of them"
        raise InputError(msg)
    world = np.asarray(adata.obsm["spatial"])[rows].astype(np.float64)
    inverse = np.linalg.inv(sample.to_world)
    xy = (inverse @ np.column_stack([world, np.ones(len(world))]).T)[:2].T
    return Field(sdata, sample, ids, rows, xy.astype(np.float32))
