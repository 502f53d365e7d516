"""Do two images of the same tissue lie on each other? Local correlation and shift; maps from landmarks."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from nimbus_sd.arrays.blobs import peak_offsets

_LEAST_OVERLAP = 0.3  # of the largest; a shift that leaves less is not compared
_FEW_NUCLEI = 0.3  # of the usual contrast, which grows with the square root of the number of nuclei


def fit_affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Affine map that takes `source` to `target` with the least squares of distances.

    Parameters
    ----------
    source, target
        ``(n, 2)``, n ≥ 3, not on a line.

    Returns
    -------
    float64 ``(3, 3)``.

    Examples
    --------
    >>> corners = np.array([[0.0, 0], [4, 0], [0, 4]])
    >>> found = fit_affine(corners, 2 * corners + [1, 0])
    >>> bool(np.allclose(found, [[2, 0, 1], [0, 2, 0], [0, 0, 1]]))
    True
    """
    middle = source.mean(axis=0)  # numbers of one size for the solver
    columns = np.column_stack([source - middle, np.ones(len(source))])
    solution = np.linalg.lstsq(columns, target, rcond=None)[0]
    matrix = np.eye(3)
    matrix[:2, :2] = solution[:2].T
    matrix[:2, 2] = solution[2] - matrix[:2, :2] @ middle
    return matrix


def flatness(points: np.ndarray) -> float:
    """Spread of points across their main direction as a share of that along it; 0 on a line.

    Examples
    --------
    >>> flatness(np.array([[0.0, 0], [1, 1], [2, 2]])) < 1e-9
    True
    """
    along, across = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return float(across / along) if along > 0 else 0.0


def pool(planes: np.ndarray, factor: int) -> np.ndarray:
    """Mean of squares of `factor` px; what is left at the end is cut off.

    Parameters
    ----------
    planes
        ``(..., y, x)``.

    Returns
    -------
    float32 ``(..., y // factor, x // factor)``.
    """
    y, x = (size // factor for size in planes.shape[-2:])
    cut = planes[..., : y * factor, : x * factor]
    out = np.zeros((*planes.shape[:-2], y, x), dtype=np.float32)
    for row in range(factor):  # six times as fast as a mean over short axes
        for column in range(factor):
            out += cut[..., row::factor, column::factor]
    return out / np.float32(factor**2)


def local_contrast(plane: np.ndarray, mask: np.ndarray, *, sigma: float) -> np.ndarray:
    """A plane without its bright outliers and its local mean: what is left are nuclei, not folds or trends.

    Parameters
    ----------
    plane
        ``(y, x)``.
    mask
        ``(y, x)`` bool, px that count.
    sigma
        px, of the Gaussian that the local mean is taken with.

    Returns
    -------
    float64 ``(y, x)``, 0 outside the mask.
    """
    if not mask.any():
        return np.zeros(plane.shape)
    top = np.percentile(plane[mask], 99)
    values = np.where(mask, np.minimum(plane, top), 0).astype(np.float64)
    weight = ndimage.gaussian_filter(mask.astype(np.float64), sigma, mode="constant")
    mean = ndimage.gaussian_filter(values, sigma, mode="constant") / np.maximum(weight, 1e-9)
    return np.where(mask, values - mean, 0)


def correlation_map(
    fixed: np.ndarray, moving: np.ndarray, masks: tuple[np.ndarray, np.ndarray], *, radius: int
) -> np.ndarray:
    """Pearson correlation of two planes for each shift, over the px that both have then.

    At shift (dy, dx) ``fixed[y, x]`` is compared with ``moving[y + dy, x + dx]``.

    Parameters
    ----------
    fixed, moving
        ``(y, x)``, of one shape.
    masks
        ``(y, x)`` bool of each: px that count.
    radius
        px, the longest shift along each axis.

    Returns
    -------
    float64 ``(2 radius + 1, 2 radius + 1)``, from (-radius, -radius) to (radius, radius); 0 for
    shifts that leave less than 0.3 of the overlap, and for planes without contrast.

    References
    ----------
    Padfield (2012), *Masked object registration in the Fourier domain*, IEEE Trans. Image
    Process. 21:2706.
    """
    parts = [_moments(fixed, masks[0]), _moments(moving, masks[1])]
    shape = [fft.next_fast_len(size + radius, real=True) for size in fixed.shape]
    (one, f, ff), (two, g, gg) = (fft.rfft2(p, s=shape) for p in parts)

    def sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        rows = np.arange(-radius, radius + 1)
        return fft.irfft2(np.conj(a) * b, s=shape)[np.ix_(rows, rows)]

    n = np.maximum(sums(one, two), 1e-9)
    sum_f, sum_g = sums(f, two), sums(one, g)
    covariance = sums(f, g) - sum_f * sum_g / n
    power = (sums(ff, two) - sum_f**2 / n, sums(one, gg) - sum_g**2 / n)
    spread = np.maximum(power[0], 0) * np.maximum(power[1], 0)
    least = 1e-9 * float((parts[0][2].sum() * parts[1][2].sum()) or 1.0)  # below it is rounding
    known = (spread > least) & (n > _LEAST_OVERLAP * n.max()) & (n > 1)
    return np.where(known, covariance / np.sqrt(np.where(known, spread, 1)), 0).clip(-1, 1)


def _moments(plane: np.ndarray, mask: np.ndarray) -> np.ndarray:
    values = np.where(mask, plane, 0).astype(np.float64)
    return np.stack([mask.astype(np.float64), values, values**2])


def best_shift(correlation: np.ndarray) -> tuple[float, np.ndarray]:
    """Highest correlation, and the shift (dy, dx) that it belongs to, finer than a px.

    Parameters
    ----------
    correlation
        Of :func:`correlation_map`.

    Examples
    --------
    >>> y, x = np.ogrid[-3:4, -3:4]
    >>> peak, shift = best_shift(1 - 0.01 * ((y - 1.25) ** 2 + (x + 0.5) ** 2))
    >>> shift.round(3).tolist()
    [1.25, -0.5]
    """
    row, column = np.unravel_index(int(correlation.argmax()), correlation.shape)
    fine = peak_offsets(correlation, np.array([row]), np.array([column]))[0]
    return float(correlation[row, column]), np.array([row, column]) - correlation.shape[0] // 2 + fine


def usual_contrast(contrast: np.ndarray) -> float:
    """What is usual in blocks with nuclei, however few those are; 0 if nothing has contrast.

    Examples
    --------
    >>> usual_contrast(np.array([0.0, 0.1, 8.0, 8.0, 0.0])).__round__(2)
    8.0
    """
    power = float((contrast**2).sum())
    return float((contrast**3).sum()) / power if power > 0 else 0.0


def judge(
    centers: np.ndarray,
    contrast: np.ndarray,
    peak: np.ndarray,
    shift: np.ndarray,
    *,
    radius: float,
    least: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks can be judged, and which are well registered.

    Parameters
    ----------
    centers
        ``(n, 2)``, in any unit.
    contrast
        Of the nuclear channel, ``(n,)``; blocks with less than 0.3 of what is usual have too
        few nuclei to be judged, and are taken for what the nearest judged block is.
    peak
        Highest correlation ``(n,)``; `least` is needed.
    shift
        Distance at which it is found, ``(n,)``; at most `radius`.

    Returns
    -------
    judged, ok
        bool ``(n,)``.

    Examples
    --------
    >>> at, peak = np.array([[0, 0], [0, 1], [0, 2], [0, 3]]), np.array([0.8, 0.0, 0.1, 0.9])
    >>> found = judge(at, np.array([9, 0.1, 8, 9]), peak, np.zeros(4), radius=3, least=0.25)
    >>> [part.tolist() for part in found]
    [[True, False, True, True], [True, True, False, True]]
    """
    judged = (contrast > 0) & (contrast >= _FEW_NUCLEI * usual_contrast(contrast))
    ok = judged & (peak >= least) & (shift <= radius)
    if judged.any() and not judged.all():
        nearest = cKDTree(centers[judged]).query(centers[~judged])[1]
        ok[~judged] = ok[judged][nearest]
    return judged, ok
