"""Streamed intensity quantiles: mergeable histograms, exact for integers, bounded error for floats."""

from __future__ import annotations

from typing import Any

import numpy as np

from nimbus_sd._core.errors import InputError

N_EXACT = 65_536
_MANTISSA_BITS = 11
_SHIFT = 23 - _MANTISSA_BITS
_N_FLOAT = 0xFF << _MANTISSA_BITS  # positive finite float32, cut to 8 + 11 bits
#: Largest relative error of a quantile of non-integer pixels (half a bin of 11 mantissa bits).
RELATIVE_ERROR = 2.0 ** -(_MANTISSA_BITS + 1)
_FULL_SCALE = (255, 1023, 4095, 16_383, 65_535)


def check_pixels(x: np.ndarray) -> None:
    """Raise unless `x` holds real, finite, non-negative numbers.

    Raises
    ------
    InputError
        For complex or non-numeric dtypes, NaN, infinity or negative pixels.
    """
    if x.dtype.kind not in "uifb":
        msg = f"pixels have dtype {x.dtype}; valid: unsigned or signed integers, float16/32/64"
        raise InputError(msg)
    if x.size == 0 or x.dtype.kind in "ub":
        return
    low, high = x.min(), x.max()
    if low >= 0 and np.isfinite(high):
        return
    if np.isnan(low) or np.isnan(high):
        what, count = "NaN", int(np.isnan(x).sum())
    elif not np.isfinite(high) or not np.isfinite(low):
        what, count = "infinite", int(np.isinf(x).sum())
    else:
        what, count = "negative", int((x < 0).sum())
    msg = f"{count} {what} pixels; intensities must be finite and ≥ 0: clean or clip the image first"
    raise InputError(msg)


class IntensityHistogram:
    """Counts of pixel values, updated block by block and added across workers.

    Integer values below 65,536 have a bin each, so their quantiles are exact.
    Anything else falls into bins of the float32 bit pattern with 11 mantissa
    bits; its quantiles have a relative error of at most :data:`RELATIVE_ERROR`.

    Parameters
    ----------
    dtype
        The image's dtype.

    Examples
    --------
    >>> h = IntensityHistogram(np.uint8)
    >>> h.update(np.array([[0, 1], [2, 9]], dtype=np.uint8))
    >>> h.quantile(0.5), h.n_pixels
    (1.5, 4)
    """

    def __init__(self, dtype: np.dtype | type) -> None:
        self.dtype = np.dtype(dtype)
        self.is_integer = self.dtype.kind in "uib"
        narrow = self.is_integer and self.dtype.itemsize <= 2
        self._exact = np.zeros(N_EXACT if self.is_integer else 0, dtype=np.int64)
        self._float = np.zeros(0 if narrow else _N_FLOAT, dtype=np.int64)
        self.maximum = 0.0

    def update(self, x: np.ndarray) -> None:
        """Count the pixels of `x` (any shape); they must pass :func:`check_pixels`."""
        if x.size == 0:
            return
        check_pixels(x)
        x = x.reshape(-1)
        maximum = float(x.max())
        self.maximum = max(self.maximum, maximum)
        if self.is_integer:
            if maximum >= N_EXACT:
                self._count_floats(x[x >= N_EXACT])
                x = x[x < N_EXACT]
            self._exact += np.bincount(x, minlength=N_EXACT)
        else:
            self._count_floats(x)

    def _count_floats(self, x: np.ndarray) -> None:
        bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
        # -0.0 has the sign bit set; a float64 beyond float32 becomes infinity: both get the nearest bin
        bins = np.minimum((bits & np.uint32(0x7FFFFFFF)) >> np.uint32(_SHIFT), np.uint32(_N_FLOAT - 1))
        self._float += np.bincount(bins, minlength=_N_FLOAT)

    def __add__(self, other: IntensityHistogram) -> IntensityHistogram:
        """Merge two histograms, both of integers or both of floats, into a new one."""
        if self.is_integer != other.is_integer:
            msg = f"can't merge histograms of {self.dtype} and {other.dtype}; cast the images to one dtype"
            raise InputError(msg)
        out = IntensityHistogram(max(self.dtype, other.dtype, key=lambda dtype: dtype.itemsize))
        for part in (self, other):
            out._exact += part._exact
            out._float[: part._float.size] += part._float
        out.maximum = max(self.maximum, other.maximum)
        return out

    def __getstate__(self) -> dict[str, Any]:
        """The bins that hold pixels: that is what travels between processes."""
        state = self.__dict__.copy()
        for name in ("_exact", "_float"):
            bins = np.flatnonzero(state[name]).astype(np.uint32)
            state[name] = (state[name].size, bins, state[name][bins])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("_exact", "_float"):
            size, bins, counts = state[name]
            dense = np.zeros(size, dtype=np.int64)
            dense[bins] = counts
            setattr(self, name, dense)

    @property
    def n_pixels(self) -> int:
        """Number of pixels counted."""
        return int(self._exact.sum() + self._float.sum())

    @property
    def n_zero(self) -> int:
        """Number of pixels that are exactly 0 (floats: below 1e-38)."""
        return int(self._exact[:1].sum() + self._float[:1].sum())

    @property
    def n_saturated(self) -> int:
        """Pixels at the largest value, when that is the full scale of 8, 10, 12, 14 or 16 bit integers."""
        if not self.is_integer or self.maximum not in _FULL_SCALE:
            return 0
        return int(self._exact[int(self.maximum)])

    def quantile(self, q: float, *, positive: bool = False) -> float:
        """Quantile with linear interpolation, as :func:`numpy.quantile` of all pixels.

        Parameters
        ----------
        q
            In [0, 1].
        positive
            Over the pixels > 0 only, as the published tool does.

        Returns
        -------
        Intensity in image units; 0.0 when there are no such pixels.
        """
        counts = np.concatenate([self._exact, self._float])
        if positive:
            counts[: 1 if self.is_integer else 0] = 0
            counts[self._exact.size : self._exact.size + 1] = 0
        total = int(counts.sum())
        if total == 0:
            return 0.0
        cumulative = np.cumsum(counts)
        position = q * (total - 1)
        below = int(np.floor(position))
        low = self._value(int(np.searchsorted(cumulative, below, side="right")))
        if position == below:
            return low
        high = self._value(int(np.searchsorted(cumulative, below + 1, side="right")))
        return low + (high - low) * (position - below)

    def _value(self, position: int) -> float:
        if position < self._exact.size:
            return float(position)
        index = position - self._exact.size
        if index == 0:
            return 0.0
        edges = np.array([index << _SHIFT, ((index + 1) << _SHIFT) - 1], dtype=np.uint32).view(np.float32)
        return float(min(edges.astype(np.float64).mean(), self.maximum))
