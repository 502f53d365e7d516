"""Cell-centred patches as torch datasets: streamed block by block, shuffled through a buffer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.image_source import common_dtype
from nimbus_sd.engine.embedding.inputs import normalise
from nimbus_sd.engine.embedding.patches import PatchSample
from nimbus_sd.engine.embedding.shuffle import Drawn, Opened, draw
from nimbus_sd.engine.readahead import read_ahead

_ACTIVE = 4  # groups of blocks that are read in turn: a batch holds cells of several places
_PIECE = 4  # patches that are copied and normalised at once, so that they stay in the cache


class PatchItem(TypedDict):
    """One cell."""

    patch: Tensor
    region: str
    instance_id: int
    border: bool


class PatchBatch(TypedDict):
    """Several cells, as torch's collate function would put :class:`PatchItem` together."""

    patch: Tensor
    region: list[str]
    instance_id: Tensor
    border: Tensor


class PatchSource(Protocol):
    """Where raw patches come from."""

    def groups(self, *, shuffle: bool) -> list[list[Any]]:
        """Jobs in reading order, grouped by what is best read one after the other."""
        ...

    def reader(self, *, shuffle: bool) -> PatchReader:
        """What a pass opens its jobs with."""
        ...


class PatchReader(Protocol):
    """Opens jobs, from any thread."""

    def __call__(self, job: Any) -> Opened:
        """Read the pixels of a job."""
        ...


@dataclass(frozen=True)
class StreamSettings:
    """How patches are read and given out.

    Parameters
    ----------
    size
        Side in px.
    batch_size
        Patches per batch.
    shuffle
        Random order of blocks, and of patches within the buffer; else the source's order.
    buffer
        Patches among which the next are drawn.
    seed
        Decides the order, together with the epoch.
    n_threads
        Reader threads; 0 reads when asked.
    transform
        After scaling: ``"identity"`` or ``"sqrt"``.

    Raises
    ------
    InputError
        If a number is out of range.
    """

    size: int = 32
    batch_size: int = 256
    shuffle: bool = True
    buffer: int = 4096
    seed: int = 0
    n_threads: int = 2
    transform: str = "sqrt"

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("batch_size", 1), ("buffer", 1), ("seed", 0), ("n_threads", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                msg = f"{name}={value!r} must be a whole number, at least {least}"
                raise InputError(msg)


class PatchStream(IterableDataset):
    """Patches of all cells of some samples, each once per pass.

    Iterating gives :class:`PatchItem`, :meth:`batches` whole batches, which is faster.
    Workers of a :class:`torch.utils.data.DataLoader` divide the blocks among themselves.

    Parameters
    ----------
    source
        Where patches are read from.
    samples
        What they belong to.
    markers
        Names of the patches' channels.
    settings
        How to read.
    scale
        Intensity of each marker that maps to 1, float64 ``(c,)``; None gives raw pixels.
    """

    def __init__(
        self,
        source: PatchSource,
        samples: Sequence[PatchSample],
        markers: Sequence[str],
        *,
        settings: StreamSettings,
        scale: np.ndarray | None,
    ) -> None:
        super().__init__()
        self._source, self._samples, self._scale = source, tuple(samples), scale
        self.markers, self.settings = tuple(markers), settings
        self.epoch, self._part = 0, (0, 1)
        self._border = [s.border(settings.size) for s in self._samples]

    @property
    def dtype(self) -> np.dtype:
        """Dtype of raw patches: it holds the pixels of every image."""
        return common_dtype(self._samples)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, c, y, x) of all patches."""
        n = sum(map(len, self._samples))
        return n, len(self.markers), self.settings.size, self.settings.size

    def __len__(self) -> int:
        return self.shape[0]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; the same epoch and seed always give the same order.

        Workers that outlive a pass (``persistent_workers``) do not hear of it.
        """
        self.epoch = int(epoch)

    def part(self, index: int, of: int) -> Self:
        """The share of one of several processes; together they give every cell once.

        ``len`` and :attr:`shape` stay those of the whole.
        """
        if not 0 <= index < of:
            msg = f"part {index} of {of}: valid are 0 to {of - 1}"
            raise InputError(msg)
        other = copy.copy(self)
        other._part = (index, of)
        return other

    def __iter__(self) -> Iterator[PatchItem]:
        for drawn in self._draw(self.settings.batch_size):
            batch = self._batch(drawn)
            ids, border = batch["instance_id"].tolist(), batch["border"].tolist()
            for patch, region, i, b in zip(batch["patch"], batch["region"], ids, border, strict=True):
                # a copy, or one patch would keep its batch in memory
                yield PatchItem(patch=patch.clone(), region=region, instance_id=i, border=b)

    def batches(self, batch_size: int | None = None, *, drop_last: bool = False) -> PatchBatches:
        """Batches instead of single patches, for a loop or ``DataLoader(…, batch_size=None)``.

        Parameters
        ----------
        batch_size
            None takes that of the settings.
        drop_last
            Leave out a last batch that is smaller.
        """
        if batch_size is not None:
            replace(self.settings, batch_size=batch_size)
        return PatchBatches(self, batch_size or self.settings.batch_size, drop_last=drop_last)

    def numbered(
        self, batch_size: int, *, drop_last: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions of cells over all samples, int64 ``(n,)``, and their raw patches ``(n, c, y, x)``."""
        first = np.cumsum([0, *(len(s) for s in self._samples)])
        for drawn in self._draw(batch_size):
            if len(drawn) == batch_size or not drop_last:
                yield first[drawn.sample] + drawn.row, drawn.buffer[drawn.at]

    def _draw(self, batch_size: int) -> Iterator[Drawn]:
        worker, s = get_worker_info(), self.settings
        id_, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        index, of = self._part[0] * workers + id_, self._part[1] * workers
        capacity = max(min(s.buffer // workers, len(self)) if s.shuffle else 0, batch_size)
        jobs = _order(self._source.groups(shuffle=s.shuffle), s, self.epoch, index, of)
        rng = np.random.default_rng([s.seed, self.epoch, index, of]) if s.shuffle else None
        opened = read_ahead(self._source.reader(shuffle=s.shuffle), jobs, n_threads=s.n_threads)
        yield from draw(
            opened,
            shape=self.shape[1:],
            dtype=self.dtype,
            capacity=capacity,
            batch_size=batch_size,
            rng=rng,
        )

    def _batch(self, drawn: Drawn) -> PatchBatch:
        names = [s.region for s in self._samples]
        ids, border = np.empty(len(drawn), np.int64), np.empty(len(drawn), bool)
        for k in np.unique(drawn.sample).tolist():
            mine = drawn.sample == k
            rows = drawn.row[mine]
            ids[mine], border[mine] = self._samples[k].ids[rows], self._border[k][rows]
        return PatchBatch(
            patch=self._pixels(drawn),
            region=[names[k] for k in drawn.sample.tolist()],
            instance_id=torch.from_numpy(ids),
            border=torch.from_numpy(border),
        )

    def _pixels(self, drawn: Drawn) -> Tensor:
        if self._scale is None:
            return torch.from_numpy(drawn.buffer[drawn.at])
        # NumPy asks the kernel for huge pages, torch does not: that was half the time of a batch
        out = torch.from_numpy(np.empty((len(drawn), *self.shape[1:]), np.float32))
        for start in range(0, len(drawn), _PIECE):
            piece = slice(start, start + _PIECE)
            normalise(drawn.buffer[drawn.at[piece]], self._scale, self.settings.transform, out=out[piece])
        return out


class PatchBatches(IterableDataset):
    """Batches of a :class:`PatchStream`; iterate again for the next pass."""

    def __init__(self, stream: PatchStream, batch_size: int, *, drop_last: bool) -> None:
        super().__init__()
        self.stream, self.batch_size, self.drop_last = stream, batch_size, drop_last

    def __iter__(self) -> Iterator[PatchBatch]:
        for drawn in self.stream._draw(self.batch_size):
            if len(drawn) == self.batch_size or not self.drop_last:
                yield self.stream._batch(drawn)


def _order(groups: list[list[Any]], s: StreamSettings, epoch: int, index: int, of: int) -> Iterator[Any]:
    """One part's jobs; where there are fewer groups than parts, groups are divided."""
    if len(groups) < of:
        groups = [[job] for group in groups for job in group]
    if not s.shuffle:
        yield from (job for group in groups[index::of] for job in group)
        return
    order = np.random.default_rng([s.seed, epoch]).permutation(len(groups))
    mine = [groups[i] for i in order[index::of].tolist()]
    for first in range(0, len(mine), _ACTIVE):
        active = [iter(g) for g in mine[first : first + _ACTIVE]]
        while active:
            for group in list(active):
                job = next(group, None)
                if job is None:
                    active.remove(group)
                else:
                    yield job
