"""Read a spill-over matrix from a CSV file."""

from __future__ import annotations

from os import PathLike

import pandas as pd

from nimbus_sd._sdata.spillover_matrix import load_matrix


def read_spillover(path: str | PathLike[str]) -> pd.DataFrame:
    r"""Read a spill-over matrix as CATALYST writes it, for :func:`nimbus_sd.pp.compensate`.

    The header names the channels that receive, the first column those that emit; values
    are shares of the emitted signal, 1 where both names are the same. There may be fewer
    rows than columns. An empty field is 0.

    Parameters
    ----------
    path
        The CSV file, comma or semicolon or tab between fields.

    Returns
    -------
    float64 ``(emitting, receiving)`` with the names as index and columns.

    Raises
    ------
    InputError
        If the file can't be read, names a channel twice, or holds something that is no
        number.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import nimbus_sd as nb
    >>> file = Path(tempfile.mkdtemp()) / "spillover.csv"
    >>> _ = file.write_text('"","Sm147Di","Nd148Di"\n"Sm147Di",1,0.02\n"Nd148Di",0.005,1\n')
    >>> nb.io.read_spillover(file).loc["Sm147Di", "Nd148Di"]
    np.float64(0.02)
    """
    return load_matrix(path)
