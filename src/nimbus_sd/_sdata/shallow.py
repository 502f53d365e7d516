"""Tables that differ from another in a part or two, and share the rest of its arrays with it."""

from __future__ import annotations

from typing import Any

import anndata as ad

_PARTS = ("layers", "obsm", "varm", "obsp", "varp", "uns")


def shallow_with(table: ad.AnnData, **changed: Any) -> ad.AnnData:
    """A table with other parts, such as ``layers=`` or ``obs=``; no array is copied.

    Parameters
    ----------
    table
        Stays as it is.
    changed
        ``obs``, ``var`` (frames) or the whole of ``layers``, ``obsm``, ``varm``, ``obsp``, ``varp``, ``uns``.
    """
    parts = {part: dict(getattr(table, part)) for part in _PARTS}
    return ad.AnnData(
        table.X, **({"obs": table.obs, "var": table.var, "raw": table.raw} | parts | dict(changed))
    )
