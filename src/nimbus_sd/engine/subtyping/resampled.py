"""Patches of images with px of different sizes, all resampled to one side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nimbus_sd.engine.embedding.dataset import PatchReader
from nimbus_sd.engine.embedding.image_source import ImagePatches
from nimbus_sd.engine.embedding.patches import PatchSample
from nimbus_sd.engine.embedding.shuffle import Opened
from nimbus_sd.engine.subtyping.inputs import prepare


@dataclass(frozen=True)
class _Resampled:
    """The cells of a block; their patches are cut at the image's side and resampled when asked for."""

    opened: Opened
    sample: np.ndarray
    size: int

    @property
    def row(self) -> np.ndarray:
        return self.opened.row

    def fill(self, which: slice, out: np.ndarray, at: np.ndarray) -> None:
        """Copy some patches to the rows `at` of `out`."""
        if self.size == out.shape[-1]:
            self.opened.fill(which, out, at)
            return
        native = np.empty((len(at), out.shape[1], self.size, self.size), out.dtype)
        self.opened.fill(which, native, np.arange(len(at)))
        seen = prepare(torch.from_numpy(native), out.shape[-1])
        out[at] = seen.mul_(255).round_().clamp_(0, 255).to(torch.uint8).numpy()


class ResampledPatches:
    """Cuts each sample's patches at a side of its own, resampled as the network's inputs are.

    Parameters
    ----------
    samples
        Cells of each image, uint8.
    markers
        Channels, which every image has.
    sizes
        Side in px of each sample's patches on its image.

    Raises
    ------
    InputError
        If an image is too small, or a centre lies outside it.
    """

    def __init__(self, samples: Sequence[PatchSample], markers: Sequence[str], sizes: Sequence[int]) -> None:
        self._sizes: list[int] = sorted(set(sizes))
        self._which = [np.flatnonzero(np.array(sizes) == s) for s in self._sizes]
        self._parts = [
            ImagePatches([samples[i] for i in which.tolist()], markers, size)
            for which, size in zip(self._which, self._sizes, strict=True)
        ]

    def groups(self, *, shuffle: bool) -> list[list[Any]]:
        """Blocks of all images, those of one side after those of another."""
        return [
            [(part, job) for job in group]
            for part, source in enumerate(self._parts)
            for group in source.groups(shuffle=shuffle)
        ]

    def reader(self, *, shuffle: bool) -> _Reader:
        """What a pass opens its blocks with."""
        readers = [part.reader(shuffle=shuffle) for part in self._parts]
        return _Reader(readers, self._which, self._sizes)


@dataclass(frozen=True)
class _Reader:
    readers: Sequence[PatchReader]
    which: Sequence[np.ndarray]
    sizes: Sequence[int]

    def __call__(self, job: tuple[int, Any]) -> _Resampled:
        part, inner = job
        opened = self.readers[part](inner)
        return _Resampled(opened, self.which[part][opened.sample], self.sizes[part])
