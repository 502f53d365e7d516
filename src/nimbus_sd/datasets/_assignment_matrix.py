"""Assignment matrices to start from: which marker each cell type expresses."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError

_FOLDER = files("nimbus_sd") / "datasets" / "assignment"


def assignment_matrix(name: str) -> pd.DataFrame:
    """Read one of the assignment matrices that come with the package.

    They hold textbook knowledge: edit a copy to suit your panel and your cell types.

    Parameters
    ----------
    name
        ``"immune"``, ``"breast"``, ``"colon"``, or ``"simulated"`` for the simulator's
        cell types and panel.

    Returns
    -------
    Cell types x markers, float64: 1 positive, 0 negative, NaN undefined.

    Raises
    ------
    ElementNotFoundError
        If there is none of this name.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> nb.datasets.assignment_matrix("immune").loc["CD8 T", ["CD3", "CD8", "CD20"]].tolist()
    [1.0, 1.0, 0.0]
    """
    known = sorted(path.name.removesuffix(".csv") for path in _FOLDER.iterdir() if path.name.endswith(".csv"))
    if name not in known:
        msg = f"no assignment matrix {name!r}; valid: {', '.join(known)}"
        raise ElementNotFoundError(msg)
    with (_FOLDER / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, index_col="cell_type").astype("float64")
