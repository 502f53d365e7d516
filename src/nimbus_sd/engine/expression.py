"""Per-label summaries of raw intensities, block by block, exact across blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nimbus_sd.arrays import Interval, Partials, merge_partials
from nimbus_sd.arrays.cells import Cells
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.source import Sample, check_planes, index_labels

STATISTICS = ("mean", "sum", "min", "max")
_BLOCK = 2048


@dataclass(frozen=True)
class Expression:
    """Summaries of one sample.

    Attributes
    ----------
    partials
        ``sums["intensity"]`` float64 ``(n, k)`` and ``sums["position"]``.
    low, high
        Smallest and largest pixel per label, float64 ``(n, k)``; empty unless asked for.
    quantiles
        float64 ``(n, k, q)``.
    """

    partials: Partials
    low: np.ndarray
    high: np.ndarray
    quantiles: np.ndarray

    def statistic(self, name: str) -> np.ndarray:
        """``(n, k)`` values of one of :data:`STATISTICS`."""
        total = self.partials.sums["intensity"]
        if name == "mean":
            return total / self.partials.count[:, None]
        return {"sum": total, "min": self.low, "max": self.high}[name]

    def cells(self) -> Cells:
        """Ids, pixels and centroids of the labels."""
        p = self.partials
        return Cells(p.ids, p.count, {"position": p.sums["position"] / p.count[:, None]})


def n_blocks(sample: Sample) -> int:
    """Number of blocks that :func:`summarise` will report."""
    return sum(1 for _ in _rectangles(sample))


def _edges(chunks: Sequence[int], size: int) -> list[int]:
    """Block borders on chunk borders, about `_BLOCK` px apart."""
    borders = (
        np.cumsum(chunks) if sum(chunks) == size else np.arange(_BLOCK, size + _BLOCK, _BLOCK).clip(max=size)
    )
    edges = [0]
    for b, following in zip(borders, [*borders[1:], None], strict=True):
        if following is None or following - edges[-1] > _BLOCK:
            edges.append(int(b))
    return edges


def _rectangles(sample: Sample) -> Iterator[tuple[Interval, Interval]]:
    y, x = (_edges(c, n) for c, n in zip(sample.image.chunks[1:], sample.labels.shape, strict=True))
    for y0, y1 in pairwise(y):
        for x0, x1 in pairwise(x):
            yield Interval(y0, y1), Interval(x0, x1)


def summarise(
    sample: Sample,
    channels: Sequence[str],
    *,
    extremes: bool = False,
    quantiles: tuple[float, ...] = (),
    n_threads: int = 2,
    on_progress: Callable[[int], None] | None = None,
) -> Expression:
    """Stream over a sample once and summarise every label.

    Parameters
    ----------
    sample
        Image and labels on one grid.
    channels
        Names to use.
    extremes
        Also find the smallest and largest pixel.
    quantiles
        Exact quantiles per label. Pixels of labels that touch a block's border are
        kept until all blocks are read; those of the others are not.
    n_threads
        Reader threads.
    on_progress
        Called with 1 per block.
    """
    wanted = [sample.image.channels.index(c) for c in channels]

    def block(rect: tuple[Interval, Interval]) -> tuple[Partials, dict[int, np.ndarray]] | None:
        return _summarise_block(sample, wanted, *rect, extremes=extremes, quantiles=quantiles)

    parts: list[Partials] = []
    crossing: dict[int, list[np.ndarray]] = {}
    for result in read_ahead(block, _rectangles(sample), n_threads=n_threads):
        if result is not None:
            parts.append(result[0])
            for label, pixels in result[1].items():
                crossing.setdefault(label, []).append(pixels)
        if on_progress:
            on_progress(1)
    return _assemble(parts, crossing, len(wanted), extremes=extremes, quantiles=quantiles)


def _summarise_block(
    sample: Sample,
    wanted: list[int],
    y: Interval,
    x: Interval,
    *,
    extremes: bool,
    quantiles: tuple[float, ...],
) -> tuple[Partials, dict[int, np.ndarray]] | None:
    labels = sample.labels.read(y, x)
    index = index_labels(labels, sample.labels.name)
    if index.ids.size == 0:
        return None
    image = sample.image.read(wanted, y, x)
    check_planes(sample.image, wanted, image)
    origin = np.array([y.start, x.start], dtype=np.float64)
    sums = {
        "intensity": index.sum(image),
        "position": index.centroid_sums + origin * index.count[:, None],
    }
    crossing: dict[int, np.ndarray] = {}
    if extremes or quantiles:
        # a stable order by label makes every label's pixels one slice
        order = np.argsort(index.rows, kind="stable")
        pixels = image.reshape(len(image), -1)[:, index.pixels[order]]
        starts = np.concatenate([[0], np.cumsum(index.count)[:-1]])
        if extremes:
            sums["low"] = np.minimum.reduceat(pixels, starts, axis=1).T.astype(np.float64)
            sums["high"] = np.maximum.reduceat(pixels, starts, axis=1).T.astype(np.float64)
        if quantiles:
            border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])).astype(
                np.int64
            )
            sums["quantiles"] = np.zeros((index.ids.size, len(image), len(quantiles)))
            for row, (label, start, n) in enumerate(zip(index.ids, starts, index.count, strict=True)):
                mine = pixels[:, start : start + n]
                if label in border:
                    crossing[int(label)] = mine.copy()
                else:
                    sums["quantiles"][row] = np.quantile(mine.astype(np.float64), quantiles, axis=1).T
    return Partials(index.ids, index.count, sums), crossing


def _assemble(
    parts: list[Partials],
    crossing: dict[int, list[np.ndarray]],
    n_channels: int,
    *,
    extremes: bool,
    quantiles: tuple[float, ...],
) -> Expression:
    merged = merge_partials(parts)
    n = merged.ids.size
    if not parts:
        nothing = {"intensity": np.zeros((0, n_channels)), "position": np.zeros((0, 2))}
        merged = Partials(merged.ids, merged.count, nothing)
    low = np.full((n, n_channels) if extremes else (0, 0), np.inf)
    high = np.full(low.shape, -np.inf)
    if extremes:
        for part in parts:
            rows = np.searchsorted(merged.ids, part.ids)
            low[rows] = np.minimum(low[rows], part.sums["low"])
            high[rows] = np.maximum(high[rows], part.sums["high"])
    values = merged.sums.get("quantiles", np.zeros((n, n_channels, len(quantiles))))
    for label, pieces in crossing.items():
        row = np.searchsorted(merged.ids, label)
        whole = np.concatenate(pieces, axis=1).astype(np.float64)
        values[row] = np.quantile(whole, quantiles, axis=1).T
    kept = ("intensity", "position")
    sums = {k: v for k, v in merged.sums.items() if k in kept}
    return Expression(Partials(merged.ids, merged.count, sums), low, high, values)
