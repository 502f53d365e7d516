"""Tiles for the browser: one byte a marker and px, or the cell at each px; kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import imagecodecs
import numpy as np
from scipy import ndimage

from nimbus_sd.app._fields import TILE, Field

#: Set where a cell borders on something else.
EDGE = np.uint32(1 << 31)
CACHE_BYTES = 256 * 2**20
_HEADROOM = 1.5  # bytes reach this much beyond the intensity that scores are normalised to
_CROP_SIDE = 208  # px of the pictures in the gallery, about


class ByteCache:
    """The last used byte strings, up to a total size.

    Parameters
    ----------
    limit
        Bytes.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.size = 0
        self._kept: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[object, ...]) -> bytes | None:
        """What is kept under `key`."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: tuple[object, ...], value: bytes) -> None:
        """Keep `value`, and drop what has not been used for longest."""
        with self._lock:
            self.size += len(value) - len(self._kept.pop(key, b""))
            self._kept[key] = value
            while self.size > self.limit and self._kept:
                self.size -= len(self._kept.popitem(last=False)[1])

    def of(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        """What is kept under `key`, made first if need be."""
        found = self.get(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found


class Tiles:
    """Pictures of fields.

    Bytes are ``255 * sqrt(intensity / full)``: the root keeps faint stains apart when the
    page stretches their contrast.

    Parameters
    ----------
    fields
        Under review.
    scale
        Marker to intensity that normalisation maps to 1, where it is known.
    """

    def __init__(self, fields: Sequence[Field], scale: Mapping[str, float]) -> None:
        self.fields = fields
        self.cache = ByteCache()
        self._scale = dict(scale)
        self._contrast: dict[tuple[int, int], tuple[float, float, float]] = {}

    def image(self, field: int, level: int, ty: int, tx: int, channels: Sequence[int]) -> bytes:
        """uint8 ``(len(channels), 256, 256)``; the channels that are not kept are read together."""
        keys = [("image", field, level, ty, tx, c) for c in channels]
        parts = {key: self.cache.get(key) for key in keys}  # a channel asked for twice is read once
        missing = [key for key, part in parts.items() if part is None]
        if missing:
            side, wanted = TILE << level, [int(key[-1]) for key in missing]
            pixels = self.fields[field].pixels(wanted, ty * side, tx * side, (TILE, TILE), 1 << level)
            for key, c, plane in zip(missing, wanted, pixels, strict=True):
                parts[key] = made = encode(plane, self.full(field, c)).tobytes()
                self.cache.put(key, made)
        return b"".join(parts[key] or b"" for key in keys)

    def cells(self, field: int, level: int, ty: int, tx: int) -> bytes:
        """uint32 ``(256, 256)``, little endian: 1 + place of the cell, the highest bit at borders."""

        def make() -> bytes:
            side, step = TILE << level, 1 << level
            around = (TILE + 2, TILE + 2)
            cells = self.fields[field].cells(ty * side - step, tx * side - step, around, step)
            return with_edges(cells).astype("<u4").tobytes()

        return self.cache.of(("cells", field, level, ty, tx), make)

    def full(self, field: int, channel: int) -> float:
        """Intensity that becomes 255: beyond the scale of the marker and beyond nearly all of the field."""
        _, high, top = self._sampled(field, channel)
        scale = self._scale.get(self.fields[field].channels[channel])
        if scale is not None and np.isfinite(scale) and scale > 0:
            return max(float(scale), high) * _HEADROOM
        return top

    def contrast(self, field: int, channel: int) -> tuple[float, float]:
        """Bytes to show as black and as the marker's full colour, from the field's own pixels."""
        low, high, _ = self._sampled(field, channel)
        full = self.full(field, channel)
        black, white = (255 * np.sqrt(min(max(v / full, 0), 1)) for v in (low, high))
        return float(black), float(max(white, black + 8))

    def _sampled(self, field: int, channel: int) -> tuple[float, float, float]:
        found = self._contrast.get((field, channel))
        if found is None:
            values = self.fields[field].sampled(channel)
            values = values[np.isfinite(values)]
            low, high = np.percentile(values, [20, 99.7]) if values.size else (0.0, 1.0)
            positive = values[values > 0]
            if positive.size and high <= low:
                high = float(np.percentile(positive, 99))
            top = float(values.max()) if values.size else 1.0
            found = (float(low), float(high), top if top > 0 else 1.0)
            self._contrast[field, channel] = found
        return found

    def crop(
        self,
        field: int,
        place: int,
        channel: int,
        *,
        window: tuple[float, float],
        context: int | None = None,
        side: int = 64,
    ) -> bytes:
        """PNG of a cell in the middle of `side` px, with its outline; what surrounds it a little fainter.

        Parameters
        ----------
        field, place
            Which cell.
        channel
            Shown in white.
        window
            Bytes that become black and white.
        context
            A channel to show in blue behind it.
        side
            px of the field.
        """
        where = self.fields[field]
        x, y = (round(float(v)) for v in where.xy[place])
        corner, size = (y - side // 2, x - side // 2), (side, side)
        channels = [channel] if context is None else [channel, context]
        planes = where.pixels(channels, *corner, size, 1)
        times = max(1, round(_CROP_SIDE / side))
        shown = encode(
            ndimage.zoom(planes[0], times, order=1, grid_mode=True, mode="nearest"), self.full(field, channel)
        )
        grey = _stretched(shown, window)
        picture = np.repeat(grey[..., None], 3, axis=-1)
        if context is not None:
            behind = ndimage.zoom(planes[1], times, order=1, grid_mode=True, mode="nearest")
            blue = _stretched(encode(behind, self.full(field, context)), self.contrast(field, context))
            picture = picture + blue[..., None] * np.array([0.10, 0.25, 0.70])
        cells = where.cells(*corner, size, 1).repeat(times, 0).repeat(times, 1)
        edges = (with_edges(np.pad(cells, 1, mode="edge")) & EDGE) != 0
        mine = cells == place + 1
        picture[edges & ~mine] = picture[edges & ~mine] * 0.6 + np.array([0.22, 0.25, 0.30])
        picture[edges & mine] = (1.0, 0.78, 0.25)
        return bytes(imagecodecs.png_encode((np.clip(picture, 0, 1) * 255).astype(np.uint8), level=1))


def encode(pixels: np.ndarray, full: float) -> np.ndarray:
    """uint8 of pixels: ``255 * sqrt(pixels / full)``, clipped; 0 where they are not finite."""
    share = np.nan_to_num(pixels / full, nan=0.0, posinf=1.0, neginf=0.0)
    return (255 * np.sqrt(np.clip(share, 0, 1)) + 0.5).astype(np.uint8)


def _stretched(shown: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    return np.clip((shown.astype(np.float32) - low) / max(high - low, 1), 0, 1)


def with_edges(cells: np.ndarray) -> np.ndarray:
    """Mark px of cells that differ from one of their four neighbours.

    Parameters
    ----------
    cells
        uint32 ``(y + 2, x + 2)``, with a margin.

    Returns
    -------
    uint32 ``(y, x)``.
    """
    inner = cells[1:-1, 1:-1]
    differs = (
        (inner != cells[:-2, 1:-1])
        | (inner != cells[2:, 1:-1])
        | (inner != cells[1:-1, :-2])
        | (inner != cells[1:-1, 2:])
    )
    return np.where(differs & (inner != 0), inner | EDGE, inner)
