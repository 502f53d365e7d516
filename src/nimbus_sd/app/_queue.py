"""Which cells to look at next."""

from __future__ import annotations

import numpy as np

from nimbus_sd._core.errors import InputError

ORDERS = ("uncertain", "random", "positive", "negative", "disputed", "reviewed")


def queue(
    scores: np.ndarray,
    *,
    order: str,
    threshold: float,
    among: np.ndarray,
    done: np.ndarray,
    disputed: np.ndarray,
    n: int,
) -> np.ndarray:
    """Rows to review.

    Parameters
    ----------
    scores
        ``(n_obs,)`` of one marker.
    order
        ``"uncertain"``: the nearest to the threshold first; ``"random"``: the same random
        order every time; ``"positive"``, ``"negative"``: the most certain first; ``"disputed"``:
        reviewers differ; ``"reviewed"``: those that this reviewer has done.
    threshold
        Above it the model says positive.
    among
        Rows to choose from.
    done
        Rows that this reviewer has reviewed: left out, but for the last two orders.
    disputed
        Rows on which reviewers differ.
    n
        At most so many.

    Returns
    -------
    int64 rows, the first is the one to look at first.

    Raises
    ------
    InputError
        If `order` is none of these.
    """
    if order not in ORDERS:
        msg = f"order {order!r}; valid: {', '.join(ORDERS)}"
        raise InputError(msg)
    if order in ("disputed", "reviewed"):
        rows = np.intersect1d(among, disputed if order == "disputed" else done)
        return rows[np.argsort(np.abs(scores[rows] - threshold), kind="stable")][:n]
    rows = np.setdiff1d(among, done)
    rows = rows[~np.isnan(scores[rows])]
    if order == "random":
        rank = np.random.default_rng(0).permutation(len(scores))[rows]
        return rows[np.argsort(rank)][:n]
    rank = {
        "uncertain": np.abs(scores[rows] - threshold),
        "positive": -scores[rows],
        "negative": scores[rows],
    }[order]
    if len(rows) > 4 * n:  # sorting all of them would be the slowest part of the page
        nearest = np.argpartition(rank, n - 1)[:n] if n else np.empty(0, np.int64)
        rows, rank = rows[nearest], rank[nearest]
    # equal ranks in the order of the table, so that a page stays what it was
    return rows[np.lexsort((rows, rank))][:n]
