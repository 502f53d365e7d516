"""Read a CSV table that a user names; errors say what is wrong with the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from nimbus_sd._core.errors import InputError


def read_csv(path: str | Path, **options: Any) -> pd.DataFrame:
    """:func:`pandas.read_csv`.

    Raises
    ------
    InputError
        If there is no such file, or it is no table.
    """
    try:
        return pd.read_csv(path, **options)
    except (FileNotFoundError, IsADirectoryError):
        msg = f"no file at {path}"
        raise InputError(msg) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        msg = f"{path} is not a CSV table ({error})"
        raise InputError(msg) from error
