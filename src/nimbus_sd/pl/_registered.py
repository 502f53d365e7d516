"""Read elements as they lie on the grid of another image: one rectangle, at a level or stride that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.align import WarpedImage, WarpedLabels, is_identity, pixel_map
from nimbus_sd.pl._view import Picture, Window, coarser_level, read_label_source, read_source


@dataclass(frozen=True)
class Grid:
    """The px of an image, on which all is drawn.

    Attributes
    ----------
    name, system
        The image, and the coordinate system that the others share with it.
    shape
        (y, x) px, full resolution.
    to_world
        3 x 3 matrix from its (x, y) to ``system``.
    """

    name: str
    system: str
    shape: tuple[int, int]
    to_world: np.ndarray

    @classmethod
    def of(cls, sdata: SpatialData, name: str, system: str) -> Grid:
        """The grid of an image of the object."""
        y, x = el.get_image(sdata, name).shape[-2:]
        return cls(name, system, (y, x), el.affine(sdata, "images", name, system))

    def from_world(self, xy: np.ndarray) -> np.ndarray:
        """(x, y) in px of positions ``(n, 2)`` in the coordinate system; the first px spans 0 to 1."""
        inverse = np.linalg.inv(self.to_world)
        return (inverse @ np.column_stack([xy, np.ones(len(xy))]).T)[:2].T

    def read_image(self, sdata: SpatialData, name: str, channels: Sequence[int], window: Window) -> Picture:
        """``(c, y, x)`` float32 of an image; px that are merged are averaged, and 0 is outside."""
        array = el.get_image(sdata, name)
        names, full = el.channel_names(array), (int(array.shape[-2]), int(array.shape[-1]))
        matrix = self._matrix(sdata, "images", name)
        level = coarser_level(sdata.images[name], full, self._step(matrix, window))
        source = el.ElementImage(name, array if level is None else level, names)
        if is_identity(matrix, self.shape) and full == self.shape:
            return read_source(source, channels, window, self.shape)
        target = self._target(matrix, window, full, source.shape)
        warped = WarpedImage(source, self._onto(matrix, target, full, source.shape), target)
        return read_source(warped, channels, window, self.shape)

    def read_labels(self, sdata: SpatialData, name: str, window: Window) -> Picture:
        """``(y, x)`` ids; of px that are merged the one in the middle counts."""
        array = el.get_labels(sdata, name)
        full = (int(array.shape[0]), int(array.shape[1]))
        matrix = self._matrix(sdata, "labels", name)
        level = coarser_level(sdata.labels[name], full, self._step(matrix, window))
        source = el.ElementLabels(name, array if level is None else level)
        if is_identity(matrix, self.shape) and full == self.shape:
            return read_label_source(source, window, self.shape)
        target = self._target(matrix, window, full, source.shape)
        warped = WarpedLabels(source, self._onto(matrix, target, full, source.shape), target)
        return read_label_source(warped, window, self.shape)

    def _matrix(self, sdata: SpatialData, kind: str, name: str) -> np.ndarray:
        """From px indices of this grid to those of an element."""
        return pixel_map(self.to_world, el.affine(sdata, kind, name, self.system))

    def _step(self, matrix: np.ndarray, window: Window) -> int:
        """Px of the element under the width of one px that is drawn."""
        return max(1, int(window.step * _scale(matrix) + 1e-6))

    def _target(
        self, matrix: np.ndarray, window: Window, full: tuple[int, int], level: tuple[int, int]
    ) -> tuple[int, int]:
        """Shape of this grid, shrunk as far as the level that is read; the rest is shrunk piece by piece."""
        wide = full[0] / level[0] / _scale(matrix)  # px of this grid under one of the level
        step = 1
        while 2 * step <= min(window.step, wide * 1.01):
            step *= 2
        return -(-self.shape[0] // step), -(-self.shape[1] // step)

    def _onto(
        self,
        matrix: np.ndarray,
        target: tuple[int, int],
        full: tuple[int, int],
        level: tuple[int, int],
    ) -> np.ndarray:
        """From px indices of the shrunk grid to those of the level."""
        return np.linalg.inv(_grown(full, level)) @ matrix @ _grown(self.shape, target)


def _scale(matrix: np.ndarray) -> float:
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def _grown(full: tuple[int, int], small: tuple[int, int]) -> np.ndarray:
    """From px indices (y, x, 1) of a shrunk grid to those of the full one."""
    y, x = full[0] / small[0], full[1] / small[1]
    return np.array([[y, 0, (y - 1) / 2], [0, x, (x - 1) / 2], [0, 0, 1.0]])
