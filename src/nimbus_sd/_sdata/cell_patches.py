"""Patches of the cells of SpatialData objects, as a torch dataset with a frame of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.centers import CenterSet
from nimbus_sd._sdata.patch_store import cached_patches
from nimbus_sd._sdata.samples import fit_images
from nimbus_sd.engine.embedding.dataset import PatchSource, PatchStream, StreamSettings
from nimbus_sd.engine.embedding.image_source import ImagePatches, common_dtype
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.models.embedding import TRANSFORMS


class CellPatches(PatchStream):
    """Cell-centred patches, read lazily; a torch ``IterableDataset``.

    Iterating gives one dict per cell, ``patch`` ``(c, y, x)``, ``region``, ``instance_id`` and
    ``border``; ``.batches(n)`` gives dicts of whole batches, faster. ``.set_epoch(e)`` changes
    the order of the next pass; ``.part(i, of)`` is one process's share.

    Attributes
    ----------
    markers
        Names of the patches' channels.
    shape
        (n, c, y, x) of all patches; ``len`` gives n.
    normalization
        What maps to 1; None for raw patches.
    """

    def __init__(
        self,
        source: PatchSource,
        centers: CenterSet,
        *,
        settings: StreamSettings,
        normalization: Normalization | None,
    ) -> None:
        scale = None if normalization is None else normalization.scale_of(centers.channels)
        samples = [s.patches for s in centers.samples]
        super().__init__(source, samples, centers.channels, settings=settings, scale=scale)
        self.normalization = normalization

    @property
    def centers(self) -> pd.DataFrame:
        """One row per cell.

        Columns ``region`` (categorical), ``instance_id``, ``y`` and ``x`` (index coordinates of
        the image) and ``border``, whether the patch reaches beyond the image.
        """
        regions = [s.region for s in self._samples]
        codes = np.repeat(np.arange(len(regions)), [len(s) for s in self._samples])
        y, x = np.concatenate([s.centers for s in self._samples]).T
        return pd.DataFrame(
            {
                "region": pd.Categorical.from_codes(codes, categories=regions),
                "instance_id": np.concatenate([s.ids for s in self._samples]),
                "y": y,
                "x": x,
                "border": np.concatenate(self._border),
            }
        )

    def __repr__(self) -> str:
        n, c, y, x = self.shape
        what = "raw" if self.normalization is None else "normalised"
        return f"CellPatches: {n} cells of {len(self._samples)} elements, {what} patches ({c}, {y}, {x})"


def cell_patches_of(
    centers: CenterSet,
    *,
    settings: StreamSettings,
    normalization: Normalization | None,
    quantile: float,
    raw: bool,
    cache: str | Path | None,
    progress: bool,
) -> CellPatches:
    """Check everything, fit the scales if they are needed, and write the cache if one is asked for.

    Raises
    ------
    InputError
        If an image is too small for the patches, a marker has no scale, or the cache is of other data.
    """
    if settings.transform not in TRANSFORMS:
        msg = f"transform={settings.transform!r}; valid: {', '.join(TRANSFORMS)}"
        raise InputError(msg)
    if raw and normalization is not None:
        msg = "raw=True gives pixels as they are; leave normalization= out, or raw="
        raise InputError(msg)
    samples = [s.patches for s in centers.samples]
    source: PatchSource = ImagePatches(samples, centers.channels, settings.size)
    if normalization is not None:
        normalization.scale_of(centers.channels)
    elif not raw:
        normalization = fit_images(
            [s.image for s in centers.samples],
            centers.channels,
            quantile=quantile,
            rule="dataset",
            n_threads=settings.n_threads,
            progress=progress,
        )
    if cache is not None:
        source = _cached(cache, samples, centers.channels, settings, progress=progress)
    return CellPatches(source, centers, settings=settings, normalization=normalization)


def _cached(
    path: str | Path,
    samples: Sequence,
    markers: Sequence[str],
    settings: StreamSettings,
    *,
    progress: bool,
) -> PatchSource:
    return cached_patches(
        path,
        samples,
        markers,
        size=settings.size,
        dtype=common_dtype(samples),
        n_threads=settings.n_threads,
        progress=progress,
    )
