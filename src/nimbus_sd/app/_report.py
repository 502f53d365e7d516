"""One self-contained page about a table of scores: what was run, what came out, what to distrust."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anndata as ad
from spatialdata import SpatialData

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd.app._clusters import USUAL
from nimbus_sd.app._report_facts import collect
from nimbus_sd.app._report_page import page
from nimbus_sd.pl._table import groups

_MAX_GROUPS = 100


def report(
    sdata: SpatialData,
    out: str | Path,
    *,
    table: str = "nimbus",
    layer: str | None = None,
    threshold: float | None = None,
    groupby: str | Sequence[str] | None = None,
    markers: str | Sequence[str] | None = None,
    max_samples: int = 12,
    images: bool = True,
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one HTML file about a table of scores, to read, print, keep and send.

    It holds what was run, cells per sample, the quality of the normalisation, the
    distribution of scores per marker, positive fractions per marker and sample,
    clusters and phenotypes where there are some, maps of a few markers, and in plain
    words what to distrust. Styles and pictures are inside it: it asks the network for
    nothing.

    Parameters
    ----------
    sdata
        Object with the table of :func:`nimbus_sd.tl.predict`.
    out
        File to write, ``.html``.
    table
        Name of the table.
    layer
        Layer with the scores, such as ``"nimbus"`` after ``predict(into=...)``; None
        takes ``X``.
    threshold
        Scores above it count as positive; None takes the model's, else 0.5.
    groupby
        Columns of ``obs`` with clusters or phenotypes; None takes those of
        ``"metacluster"``, ``"leiden"``, ``"phenotype"`` and ``"cell_type"`` that exist.
    markers
        At most 8 to draw on maps; None takes up to six whose calls differ most
        between cells and from each other's.
    max_samples
        Samples to draw on maps, those with most cells; numbers are given for all.
    images
        Also draw a small piece of one sample's image with outlines.
    title
        Heading; None takes the store's name.
    overwrite
        Replace a file that exists.

    Returns
    -------
    Path of the file.

    Raises
    ------
    ElementNotFoundError
        If the table, the layer, a marker or a column does not exist.
    InputError
        If `out` can't be written, the table is empty or holds no scores in [0, 1], or
        an argument is out of range. Nothing is written.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(96, 96), channels=["CD3", "CD20"])
    >>> nb.tl.predict(sdata, progress=False)
    >>> nb.app.report(sdata, "report.html").name
    'report.html'
    """
    path = _check_out(Path(out).expanduser(), overwrite=overwrite)
    if max_samples < 1:
        msg = f"max_samples={max_samples}; at least 1"
        raise InputError(msg)
    adata = _table(sdata, table)
    columns = _columns(adata, groupby)
    facts = collect(adata, layer=layer, threshold=threshold, markers=markers)
    text = page(
        sdata if images else None,
        adata,
        facts,
        columns,
        table=table,
        title=title or _title(sdata),
        max_samples=max_samples,
    )
    _write(path, text, overwrite=overwrite)
    return path


def _check_out(path: Path, *, overwrite: bool) -> Path:
    if path.suffix.lower() not in (".html", ".htm"):
        msg = f"out={str(path)!r}: a page ends in .html, for instance {path.name}.html"
        raise InputError(msg)
    if not path.parent.is_dir():
        msg = f"out={str(path)!r}: the folder {path.parent} does not exist; create it first"
        raise InputError(msg)
    if path.is_dir():
        msg = f"out={str(path)!r} is a folder; name a file in it"
        raise InputError(msg)
    if path.exists() and not overwrite:
        msg = f"out={str(path)!r} exists; pass overwrite=True to replace it, or another path"
        raise InputError(msg)
    return path


def _table(sdata: SpatialData, name: str) -> ad.AnnData:
    if not isinstance(sdata, SpatialData):
        msg = (
            f"expected a SpatialData object, got {type(sdata).__name__}; read one with spatialdata.read_zarr"
        )
        raise InputError(msg)
    if name not in sdata.tables:
        known = ", ".join(map(repr, sdata.tables)) or "none; nb.tl.predict writes one"
        msg = f"no table {name!r} in the object; tables: {known}"
        raise ElementNotFoundError(msg)
    adata = sdata.tables[name]
    if not adata.n_obs or not adata.n_vars:
        msg = f"table {name!r} has {adata.n_obs} cells and {adata.n_vars} markers: nothing to report on"
        raise InputError(msg)
    return adata


def _columns(adata: ad.AnnData, groupby: str | Sequence[str] | None) -> list[str]:
    if groupby is None:
        return [c for c in USUAL if c in adata.obs and 1 <= adata.obs[c].nunique() <= _MAX_GROUPS]
    columns = [groupby] if isinstance(groupby, str) else list(groupby)
    for column in columns:
        groups(adata, column, limit=_MAX_GROUPS)
    return columns


def _title(sdata: SpatialData) -> str:
    return "Marker scores" if sdata.path is None else Path(str(sdata.path)).name.removesuffix(".zarr")


def _write(path: Path, text: str, *, overwrite: bool) -> None:
    """Whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
        _check_out(path, overwrite=overwrite)  # the work took a while
