"""Silver labels that go wrong the way clustering does: whole cell types in some fields, and single cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbus_sd._core.errors import InputError


@dataclass(frozen=True)
class SilverNoise:
    """How labels are corrupted.

    Parameters
    ----------
    rate
        Share of the defined labels that end up wrong.
    clustered
        Share of these that come from clusters (a cell type of one field) that got the
        label profile of another type; the rest are single flips.
    marker_spread
        Single flips hit a marker with a factor drawn from 1 ± this.
    seed
        Decides which.
    """

    rate: float = 0.2
    clustered: float = 0.5
    marker_spread: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, high in (("rate", 0.5), ("clustered", 1), ("marker_spread", 1)):
            if not 0 <= getattr(self, name) <= high:
                msg = f"SilverNoise.{name} must lie in [0, {high}], got {getattr(self, name)!r}"
                raise InputError(msg)


def corrupt(
    positive: NDArray[Any], cell_type: NDArray[Any], fields: NDArray[Any], noise: SilverNoise
) -> NDArray[np.float32]:
    """Corrupt labels.

    Parameters
    ----------
    positive
        ``(n, m)``: 1, 0 or NaN; NaN stays NaN.
    cell_type, fields
        ``(n,)``: what clustering groups by.
    noise
        How many and which.

    Returns
    -------
    float32 ``(n, m)``; within one entry, ``noise.rate`` of the defined labels differ.
    """
    rng = np.random.default_rng((noise.seed, 0x51))
    out = np.array(positive, np.float32)
    defined = ~np.isnan(out)
    goal = round(noise.rate * defined.sum())
    _swap_clusters(out, defined, cell_type, fields, goal=round(goal * noise.clustered), rng=rng)
    wrong = defined & (out != positive)
    short = goal - int(wrong.sum())
    if short > 0:
        factor = rng.uniform(1 - noise.marker_spread, 1 + noise.marker_spread, out.shape[1])
        chance = np.where(defined & ~wrong, np.maximum(factor, 1e-6), 0).ravel()
        # the smallest exponential waiting times are a weighted draw without replacement
        waiting = np.full(chance.size, np.inf)
        live = chance > 0
        waiting[live] = rng.exponential(size=int(live.sum())) / chance[live]
        flips = np.unravel_index(np.argpartition(waiting, short - 1)[:short], out.shape)
        out[flips] = 1 - out[flips]
    return out


def _swap_clusters(
    out: NDArray[np.float32],
    defined: NDArray[np.bool_],
    cell_type: NDArray[Any],
    fields: NDArray[Any],
    *,
    goal: int,
    rng: np.random.Generator,
) -> None:
    """Give clusters the profile of another type, in place, until `goal` labels are wrong."""
    types = np.unique(cell_type)
    if len(types) < 2:
        return
    share = np.stack(
        [
            np.where(defined[cell_type == t], out[cell_type == t], 0).sum(0)
            / np.maximum(defined[cell_type == t].sum(0), 1)
            for t in types
        ]
    )
    profile = (share > 0.5).astype(np.float32)
    clusters = sorted({(str(f), str(t)) for f, t in zip(fields, cell_type, strict=True)})
    as_text = (fields.astype(str), cell_type.astype(str))
    done = 0
    for k in rng.permutation(len(clusters)):
        if done >= goal:
            return
        rows = np.flatnonzero((as_text[0] == clusters[k][0]) & (as_text[1] == clusters[k][1]))
        others = [i for i, t in enumerate(types) if str(t) != clusters[k][1]]
        new = np.broadcast_to(profile[rng.choice(others)], (len(rows), out.shape[1]))
        changed = defined[rows] & (out[rows] != new)
        if done + int(changed.sum()) > goal:
            # only as many cells of the last cluster as are needed
            enough = int(np.searchsorted(np.cumsum(changed.sum(1)), goal - done, side="right"))
            rows, new, changed = rows[:enough], new[:enough], changed[:enough]
        out[rows] = np.where(changed, new, out[rows])
        done += int(changed.sum())
