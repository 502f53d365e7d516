"""One intensity scale per marker, fitted by streaming over a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import IntensityHistogram
from nimbus_sd.engine.pixel_counts import chunk_jobs, count_image
from nimbus_sd.engine.source import ImageSource

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["RULES", "Normalization", "check_rule", "chunk_jobs", "fit_normalization"]

RULES = ("dataset", "fov_mean")
_DEBRIS_RATIO = 8.0


@dataclass(frozen=True)
class Normalization:
    """The intensity of each marker that maps to 1, and what was seen while fitting it.

    Attributes
    ----------
    channels
        Marker names.
    scale
        Intensity that maps to 1, image units; 1.0 for an empty channel.
    quantile, rule
        ``"dataset"``: quantile of all pixels of all images (the paper's text);
        ``"fov_mean"``: quantile of the pixels > 0 of each image, averaged over the
        images that have any (the published tool).
    fitted_on
        Names of the images.
    n_pixels, n_saturated
        Pixels seen; pixels at the full scale of their integer type.
    maximum
        Largest pixel.
    flags
        ``""``, ``"empty"``, ``"sparse"`` (fewer positive pixels than the quantile
        leaves: the maximum is the scale), ``"saturated"`` (full scale is reached below
        the quantile) or ``"debris"`` (the quantile is over eight times the 99th
        percentile of the positive pixels, so a few very bright spots set the scale).

    Examples
    --------
    >>> n = Normalization(("CD3",), (12.0,), 0.9999, "dataset", ("fov1_image",))
    >>> n.scale_of(["CD3"]).tolist()
    [12.0]
    """

    channels: tuple[str, ...]
    scale: tuple[float, ...]
    quantile: float
    rule: str
    fitted_on: tuple[str, ...]
    n_pixels: tuple[int, ...] = ()
    n_saturated: tuple[int, ...] = ()
    maximum: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_rule(self.quantile, self.rule)
        if len(self.scale) != len(self.channels):
            msg = f"{len(self.channels)} channels but {len(self.scale)} scales; give one scale per channel"
            raise InputError(msg)
        bad = [c for c, s in zip(self.channels, self.scale, strict=True) if not (np.isfinite(s) and s > 0)]
        if bad:
            msg = f"scales must be finite and > 0; they are not for {bad}"
            raise InputError(msg)

    def scale_of(self, channels: Sequence[str]) -> np.ndarray:
        """Scales of `channels`, float64 ``(n,)``.

        Raises
        ------
        InputError
            Naming the channels that were not fitted.
        """
        table = dict(zip(self.channels, self.scale, strict=True))
        missing = [c for c in channels if c not in table]
        if missing:
            msg = (
                f"the normalisation has no scale for {missing}; it knows {list(self.channels)}. "
                "Fit it on these channels with nb.pp.normalization(..., channels=...)"
            )
            raise InputError(msg)
        return np.array([table[c] for c in channels])

    def column(self, name: str, channels: Sequence[str]) -> list:
        """Values of ``n_saturated``, ``n_pixels``, ``maximum`` or ``flags`` for `channels`."""
        table = dict(zip(self.channels, getattr(self, name), strict=False))
        missing: object = "" if name == "flags" else 0
        return [table.get(c, missing) for c in channels]

    def to_dict(self) -> dict:
        """Plain lists, numbers and strings; ``pandas.DataFrame`` of the per-channel ones is a table."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(
            json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    @classmethod
    def from_dict(cls, values: dict) -> Normalization:
        """Inverse of :meth:`to_dict`."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown or not {"channels", "scale", "quantile", "rule", "fitted_on"} <= set(values):
            msg = f"not a saved normalisation: keys {sorted(values)}; write one with Normalization.save"
            raise InputError(msg)
        wrong = [k for k in ("channels", "scale") if not isinstance(values[k], list | tuple)]
        numbers = [values["quantile"], *(values["scale"] if not wrong else [])]
        if wrong or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
            msg = "not a saved normalisation: channels and scale must be lists, scales and quantile numbers"
            raise InputError(msg)
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    @classmethod
    def load(cls, path: str | Path) -> Normalization:
        """Read what :meth:`save` wrote."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            msg = f"{path} is not JSON ({error}); write a normalisation with Normalization.save"
            raise InputError(msg) from error
        return cls.from_dict(values)


def check_rule(quantile: float, rule: str) -> None:
    """Raise :class:`InputError` unless the quantile is in (0, 1] and the rule is known."""
    if not 0 < quantile <= 1:
        msg = f"quantile={quantile!r} must be in (0, 1], for instance 0.9999"
        raise InputError(msg)
    if rule not in RULES:
        msg = f"rule={rule!r}; valid: {', '.join(RULES)}"
        raise InputError(msg)


def fit_normalization(
    images: Sequence[ImageSource],
    channels: Sequence[str],
    *,
    quantile: float = 0.9999,
    rule: str = "dataset",
    n_threads: int = 2,
    on_progress: Callable[[int], None] | None = None,
    client: Client | None = None,
) -> Normalization:
    """Stream over every chunk of `channels` once and find their scales.

    Parameters
    ----------
    images
        All images of the dataset.
    channels
        Markers, in every image.
    quantile, rule
        See :class:`Normalization`.
    n_threads
        Reader threads.
    on_progress
        Called with the number of pixels read since the last call.
    client
        Of a dask cluster whose workers read the images; None reads them in this
        process. The scales are the same.

    Raises
    ------
    InputError
        If images hold floats and integers, or pixels are negative, NaN or infinite.
    ClusterError
        If the cluster has no workers, or they die of a part of an image.
    """
    check_rule(quantile, rule)
    _check_kinds(images)
    merged: list[IntensityHistogram] = []
    each = []
    # merged image by image: histograms of all images at once would grow with the dataset
    for mine in _histograms(images, channels, n_threads, on_progress, client):
        if rule == "fov_mean":
            each.append([h.quantile(quantile, positive=True) for h in mine])
        merged = [a + b for a, b in zip(merged, mine, strict=True)] if merged else mine
    if rule == "dataset":
        scale = [h.quantile(quantile) for h in merged]
    else:
        found = np.array(each)
        scale = (found.sum(axis=0) / np.maximum((found > 0).sum(axis=0), 1)).tolist()
    flags = tuple(_flag(h, s) for h, s in zip(merged, scale, strict=True))
    return Normalization(
        channels=tuple(channels),
        scale=tuple(float(s or h.maximum or 1.0) for s, h in zip(scale, merged, strict=True)),
        quantile=quantile,
        rule=rule,
        fitted_on=tuple(image.name for image in images),
        n_pixels=tuple(h.n_pixels for h in merged),
        n_saturated=tuple(h.n_saturated for h in merged),
        maximum=tuple(h.maximum for h in merged),
        flags=flags,
    )


def _histograms(
    images: Sequence[ImageSource],
    channels: Sequence[str],
    n_threads: int,
    on_progress: Callable[[int], None] | None,
    client: Client | None,
) -> Iterator[list[IntensityHistogram]]:
    """Per image, the histograms of its channels."""
    if client is None:
        yield from (count_image(image, channels, n_threads, on_progress) for image in images)
        return
    from nimbus_sd.engine.cluster_counts import count_on_cluster

    yield from count_on_cluster(images, channels, client, n_threads=n_threads, on_progress=on_progress)


def _check_kinds(images: Sequence[ImageSource]) -> None:
    """Integers are counted exactly, floats in bins: one dataset must be one or the other."""
    floats = [i.name for i in images if i.dtype.kind == "f"]
    if floats and len(floats) < len(images):
        others = [i.name for i in images if i.dtype.kind != "f"]
        msg = f"images {floats[:3]} hold floats and {others[:3]} integers; cast them to one kind first"
        raise InputError(msg)


def _flag(histogram: IntensityHistogram, scale: float) -> str:
    if histogram.maximum == 0:
        return "empty"
    if scale == 0:
        return "sparse"
    if histogram.n_saturated and scale >= histogram.maximum:
        return "saturated"
    common = histogram.quantile(0.99, positive=True)
    return "debris" if scale > _DEBRIS_RATIO * common else ""
