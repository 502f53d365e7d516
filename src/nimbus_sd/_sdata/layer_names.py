"""Which layers a table has, whatever the version of anndata."""

from __future__ import annotations

from collections.abc import Iterable


def layer_names(layers: Iterable[str | None]) -> list[str]:
    """Names in ``adata.layers`` without ``None``, which is ``X`` from anndata 0.13 on.

    Examples
    --------
    >>> layer_names([None, "raw"])
    ['raw']
    """
    return [name for name in layers if name is not None]
