"""Labels, points and shapes as sets of cell centres."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import zarr
from spatialdata import SpatialData

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.zarr_source import grid_of
from nimbus_sd.arrays import Interval, Partials, merge_partials
from nimbus_sd.arrays.tiling import join_chunks
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.source import index_labels

KINDS = ("labels", "points", "shapes")
_SIDE = 1024  # px; labels are read in rectangles of at least this, on chunk borders


@dataclass(frozen=True)
class CenterElement:
    """An element whose members are cells.

    Attributes
    ----------
    name
        In the object.
    kind
        ``"labels"``, ``"points"`` or ``"shapes"``.
    element
        Full resolution.
    """

    name: str
    kind: str
    element: Any

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Ids int64 ``(n,)``, centres (x, y) in the element's coordinates, and pixels of each label."""
        if self.kind == "labels":
            return _centroids(el.ElementLabels(self.name, self.element))
        frame = self._frame
        return _whole_ids(frame.index, str(self)), frame.to_numpy(np.float64), None

    def overlapping(self, sdata: SpatialData, image: str, system: str | None) -> list[str]:
        """Coordinate systems in which the element and an image overlap, the best first."""
        ours, theirs = el.systems(sdata, self.kind, self.name), el.systems(sdata, "images", image)
        shared = el.shared_systems(ours, theirs) if system is None else [system]
        shared = [s for s in shared if s in ours and s in theirs]
        return [s for s in shared if self._overlaps(sdata, image, s)]

    def _overlaps(self, sdata: SpatialData, image: str, system: str) -> bool:
        height, width = el.finest(sdata.images[image]).shape[-2:]
        corners = np.array([[x, y] for x in (0.0, width) for y in (0.0, height)])
        theirs = _box(corners, el.affine(sdata, "images", image, system))
        ours = _box(self._extent, el.affine(sdata, self.kind, self.name, system))
        low, high = np.maximum(ours[0], theirs[0]), np.minimum(ours[1], theirs[1])
        # a single point has no extent
        return bool((high > low).all() if self.kind == "labels" else (high >= low).all())

    @cached_property
    def _extent(self) -> np.ndarray:
        """Corners (x, y) of the bounding box, ``(4, 2)``."""
        if self.kind == "labels":
            low, high = np.zeros(2), np.array(self.element.shape[::-1], np.float64)
        else:
            xy = self._frame.to_numpy(np.float64)
            low, high = xy.min(axis=0), xy.max(axis=0)
        return np.array([[x, y] for x in (low[0], high[0]) for y in (low[1], high[1])])

    @cached_property
    def _frame(self) -> pd.DataFrame:
        """Finite centres, columns x and y, of points or shapes."""
        if self.kind == "points":
            frame = self.element[["x", "y"]].compute(scheduler="synchronous")
        else:
            middle = self.element.geometry.centroid
            frame = pd.DataFrame({"x": middle.x, "y": middle.y}, index=self.element.index)
        if not len(frame):
            msg = f"{self} is empty; name other centres with centers="
            raise InputError(msg)
        broken = int((~np.isfinite(frame.to_numpy(np.float64)).all(axis=1)).sum())
        if broken:
            msg = f"{self}: {broken} of {len(frame)} positions are missing or not finite; drop these rows"
            raise InputError(msg)
        return frame


def find_element(sdata: SpatialData, name: str) -> CenterElement:
    """Return labels, points or shapes by name.

    Raises
    ------
    ElementNotFoundError
        Listing what there is.
    """
    for kind in KINDS:
        if name in getattr(sdata, kind):
            element = el.get_labels(sdata, name) if kind == "labels" else getattr(sdata, kind)[name]
            return CenterElement(name, kind, element)
    known = "; ".join(f"{k}: {', '.join(map(repr, getattr(sdata, k))) or 'none'}" for k in KINDS)
    msg = f"no labels, points or shapes {name!r} in the object; {known}"
    raise ElementNotFoundError(msg)


def _box(xy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    world = (matrix @ np.column_stack([xy, np.ones(len(xy))]).T)[:2]
    return np.array([world.min(1), world.max(1)])


def _whole_ids(index: pd.Index, what: str) -> np.ndarray:
    """An element's index as int64 ids; errors say how to reset it."""
    advice = "reset it, for instance with .reset_index(drop=True), and store the element again"
    if index.dtype.kind not in "ui":
        msg = f"{what}: its index has dtype {index.dtype}, and ids must be whole numbers; {advice}"
        raise InputError(msg)
    if not index.is_unique:
        twice = index[index.duplicated()][:3].tolist()
        msg = f"{what}: its index holds {twice} more than once, and ids must be unique; {advice}"
        raise InputError(msg)
    if index.dtype.kind == "u" and int(index.max()) > np.iinfo(np.int64).max:
        msg = f"{what}: its index holds {int(index.max())}, too large for int64; {advice}"
        raise InputError(msg)
    return index.to_numpy(np.int64)


def _centroids(labels: el.ElementLabels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids ascending, centroids (x, y) in px coordinates, pixels; each chunk is read once."""

    def count(rect: tuple[Interval, Interval]) -> Partials:
        index = index_labels(labels.read(*rect), labels.name)
        origin = np.array([rect[0].start, rect[1].start])
        return Partials(
            index.ids, index.count, {"position": index.centroid_sums + origin * index.count[:, None]}
        )

    merged = merge_partials(read_ahead(count, _rectangles(labels), n_threads=2))
    if not merged.ids.size:
        return merged.ids, np.empty((0, 2)), merged.count
    middle = merged.sums["position"] / merged.count[:, None]
    return merged.ids, middle[:, ::-1] + 0.5, merged.count


def _rectangles(labels: el.ElementLabels) -> list[tuple[Interval, Interval]]:
    array = labels.array
    if isinstance(array, zarr.Array):
        sizes = grid_of(array)
    else:
        sizes = array.chunks if isinstance(array, da.Array) else tuple((n,) for n in array.shape)
    rows, columns = (pairwise(join_chunks(s, least=_SIDE)) for s in sizes)
    return [(Interval(*y), Interval(*x)) for y, x in product(rows, columns)]
