"""H&E patches for training and validation: in memory where they fit, else streamed from images or a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.he import HE_CHANNELS
from nimbus_sd._sdata.patch_store import cached_patches
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd._sdata.subtype_cells import CellSplit, PlacedCells
from nimbus_sd.engine.embedding import supply
from nimbus_sd.engine.embedding.dataset import PatchSource, PatchStream, StreamSettings
from nimbus_sd.engine.embedding.image_source import ImagePatches
from nimbus_sd.engine.embedding.patches import PatchSample
from nimbus_sd.engine.embedding.stream import StreamSupply
from nimbus_sd.engine.subtyping.inputs import native_size
from nimbus_sd.engine.subtyping.resampled import ResampledPatches
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.engine.subtyping.validate import NumberedPatches, PatchArray

_PIECE = 256  # patches that are copied together


@dataclass(frozen=True)
class PatchPlan:
    """Where patches are kept.

    Attributes
    ----------
    cache
        Bytes that they may take in memory.
    store
        Folder for zarr stores of those that don't fit; None reads the images again in every pass.
    n_threads
        Reader threads.
    progress
        Show progress bars.
    """

    cache: int
    store: Path | None
    n_threads: int
    progress: bool


def patches_for(
    found: CellSplit, config: SubtypeTrainConfig, plan: PatchPlan
) -> tuple[supply.PatchSupply, NumberedPatches]:
    """Patches to train on, in an order that the seed decides, and those to validate with.

    Both lie in memory if they fit there together; else validation may take half of it, and
    training what is left if it fits into that.
    """
    size = common_size(found, config)
    sides = _Sides(config, size)
    needed = {
        name: supply.nbytes(part.samples, 3, size)
        for name, part in (("train", found.train), ("validation", found.validation))
    }
    together = sum(needed.values()) <= plan.cache
    judged_in_memory = together or needed["validation"] <= plan.cache // 2
    left = plan.cache - (needed["validation"] if judged_in_memory else 0)
    judged = _validation(found.validation, sides, plan, in_memory=judged_in_memory)
    batch = config.effective_batch
    if needed["train"] <= left:
        patches = _load(found.train, sides, plan)
        return supply.MemorySupply(patches, batch, config.seed), judged
    streamed = StreamSupply(
        found.train.samples,
        HE_CHANNELS,
        size,
        batch=batch,
        seed=config.seed,
        nbytes=left,
        n_threads=plan.n_threads,
        source=_source(found.train, sides, plan, "train"),
    )
    return streamed, judged


@dataclass(frozen=True)
class _Sides:
    """Side in px of all patches, and on each image."""

    config: SubtypeTrainConfig
    size: int

    def of(self, sample: PatchSample) -> int:
        return native_size(self.config.patch, self.config.mpp, sample.mpp or self.config.mpp)


def common_size(found: CellSplit, config: SubtypeTrainConfig) -> int:
    """Side in px of all patches: that on the images, or the network's where images differ."""
    sizes = {
        native_size(config.patch, config.mpp, sample.mpp or config.mpp)
        for sample in (*found.train.samples, *found.validation.samples)
    }
    return sizes.pop() if len(sizes) == 1 else config.patch


def _load(cells: PlacedCells, sides: _Sides, plan: PatchPlan) -> np.ndarray:
    """All patches, in the order of the cells."""
    out = np.empty((len(cells.targets), 3, sides.size, sides.size), np.uint8)
    stream = _stream(_images(cells, sides), cells, sides, plan)
    with progress_bar(len(out), description="patches", unit="cell", show=plan.progress) as advance:
        for rows, raw in stream.numbered(_PIECE):
            out[rows] = raw
            advance(len(rows))
    return out


def _validation(cells: PlacedCells, sides: _Sides, plan: PatchPlan, *, in_memory: bool) -> NumberedPatches:
    if in_memory:
        return PatchArray(_load(cells, sides, plan))
    return _stream(_source(cells, sides, plan, "validation"), cells, sides, plan)


def _stream(source: PatchSource, cells: PlacedCells, sides: _Sides, plan: PatchPlan) -> PatchStream:
    """Every patch once, in the source's order."""
    settings = StreamSettings(size=sides.size, shuffle=False, n_threads=plan.n_threads)
    return PatchStream(source, cells.samples, HE_CHANNELS, settings=settings, scale=None)


def _images(cells: PlacedCells, sides: _Sides) -> PatchSource:
    sizes = [sides.of(s) for s in cells.samples]
    if set(sizes) == {sides.size}:
        return ImagePatches(cells.samples, HE_CHANNELS, sides.size)
    return ResampledPatches(cells.samples, HE_CHANNELS, sizes)


def _source(cells: PlacedCells, sides: _Sides, plan: PatchPlan, name: str) -> PatchSource:
    """The images, or a store of their patches."""
    if plan.store is None:
        return _images(cells, sides)
    told = sorted({(sides.of(s), s.region) for s in cells.samples})
    if {n for n, _ in told} != {sides.size}:
        shown = ", ".join(f"{n} px on {region}" for n, region in told[:4])
        msg = (
            f"store=: patches of {sides.config.patch * sides.config.mpp:.3g} µm have different sides "
            f"({shown}); a store holds those of images with one pixel size. Leave store= out, or resample "
            "the images"
        )
        raise InputError(msg)
    return cached_patches(
        plan.store / f"{name}.zarr",
        cells.samples,
        HE_CHANNELS,
        size=sides.size,
        dtype=np.dtype(np.uint8),
        n_threads=plan.n_threads,
        progress=plan.progress,
        argument="store",
    )
