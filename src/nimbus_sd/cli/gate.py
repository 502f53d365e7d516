"""``nimbus-sd gate``: thresholds per marker and section, suggested, drawn, and made labels of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._files import mapping
from nimbus_sd.cli._options import AsJson, DryRun, Overwrite, Stores, split_names
from nimbus_sd.cli._places import check_key
from nimbus_sd.cli._tables import check_ending, check_file
from nimbus_sd.cli._truth import open_tables

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


def gate(
    stores: Stores,
    table: Annotated[str, typer.Option(help="Table of the cells in each store.")] = "table",
    layer: Annotated[
        str | None, typer.Option(help="Intensities; integrated_expression if there is one, else X.")
    ] = None,
    section: Annotated[
        str | None, typer.Option(help="Column of each cell's section; section, else the regions.")
    ] = None,
    markers: Annotated[
        str | None, typer.Option(help="Comma-separated; lymphocyte markers, or all, when left out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV for suggested thresholds, to be looked at and edited.")
    ] = None,
    thresholds: Annotated[
        Path | None, typer.Option(help="CSV of thresholds to gate by: labels are written into the stores.")
    ] = None,
    key_added: Annotated[str, typer.Option(help="Layer for the labels 1, 0, NaN.")] = "gated",
    tree: Annotated[
        str,
        typer.Option(
            help="Which marker implies which, to undo labels that contradict each other: auto (CD45 > CD3e > "
            "CD4, CD8a, as far as they are there), none, CD3e=CD45,CD4=CD3e, or a file."
        ),
    ] = "auto",
    plot: Annotated[
        Path | None, typer.Option(help="Also draw intensities and thresholds, .png, .pdf or .svg.")
    ] = None,
    sections: Annotated[str | None, typer.Option(help="Comma-separated sections to draw.")] = None,
    confidence: Annotated[float, typer.Option(help="Odds that a label needs, for suggestions.")] = 0.99,
    quantile: Annotated[
        float, typer.Option(help="Positive cells above it are over-exposed, for suggestions.")
    ] = 0.995,
    max_cells: Annotated[int, typer.Option(help="Cells of a section that suggestions look at.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Decides which.")] = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Suggest thresholds as a CSV, or gate cells by one and undo labels that contradict each other."""
    _check_call(out, thresholds, plot, overwrite=overwrite)
    sdatas = open_tables(stores, table, write=thresholds is not None)
    tables = [sdata.tables[table] for sdata in sdatas]
    facts: dict[str, Any] = {"stores": stores, "table": table, "out": out, "plot": plot, "dry_run": dry_run}
    names, drawn = split_names(markers), split_names(sections)
    found = None if thresholds is None else _read(thresholds, names)
    if found is None or found.index.nlevels == 2:
        _check_sections(tables, stores, section)
    if found is None:
        whole = _joined(tables, stores, layer, section)
        found = _suggested(whole, names, confidence, quantile, max_cells, seed)
        told = {"thresholds": found.reset_index()}
        lines = [found.drop(columns="n_cells").round(3).to_string()]
    else:
        for each in tables:
            check_key("--key-added", key_added, each.layers)
        told, lines = _gated(
            tables, stores, found, layer=layer, section=section, key=key_added, tree=tree, overwrite=overwrite
        )
        whole = _joined(tables, stores, layer, section) if plot is not None else None
        told["key_added"] = key_added
    if plot is not None:  # before anything is written: what can't be drawn is an error
        _draw(whole, found, drawn, None if dry_run else plot)
    if not dry_run and thresholds is not None:
        _persist(sdatas, table)
        lines.append(f"layer {key_added!r} -> {', '.join(f'{s}/tables/{table}' for s in stores)}")
    elif not dry_run and out is not None:
        with whole_file(out) as partial:
            found.to_csv(partial, float_format="%.6g")
        lines += [f"thresholds -> {out}", f"next: nimbus-sd gate STORE --thresholds {out}"]
    if plot is not None and not dry_run:
        lines.append(f"figure -> {plot}")
    if dry_run:
        lines.append("a dry run: nothing was written")
    answer({**facts, **told}, lines, as_json=as_json)


def _check_call(out: Path | None, thresholds: Path | None, plot: Path | None, *, overwrite: bool) -> None:
    if thresholds is not None and out is not None:
        msg = "--out takes suggestions and --thresholds makes none; leave one of them out"
        raise InputError(msg)
    if thresholds is not None and not thresholds.is_file():
        msg = f"--thresholds {thresholds}: there is no such file; nimbus-sd gate STORE --out writes one"
        raise InputError(msg)
    check_ending("--out", out, ".csv")
    check_ending("--plot", plot, ".png", ".pdf", ".svg")
    for option, path in (("--out", out), ("--plot", plot)):
        check_file(option, path, overwrite=overwrite)


def _check_sections(tables: Sequence[AnnData], stores: Sequence[str], section: str | None) -> None:
    """Raise if several stores have sections of one name, which thresholds would take for one."""
    from nimbus_sd._sdata.gates import cell_sections

    seen = dict[str, str]()
    for table, store in zip(tables, stores, strict=True):
        of_cell, column = cell_sections(table, section)
        if not column and len(tables) > 1:
            msg = f"{store}: the table knows no sections; name their column with --section, or gate it alone"
            raise InputError(msg)
        for name in dict.fromkeys(of_cell.tolist()):
            if name in seen:
                msg = f"section {name!r} is in {seen[name]} and in {store}; gate one store at a time"
                raise InputError(msg)
            seen[name] = store


def _joined(
    tables: Sequence[AnnData], stores: Sequence[str], layer: str | None, section: str | None
) -> AnnData:
    """One table; of several stores their intensities and sections, for the markers that all have."""
    if len(tables) == 1 and layer is None and section is None:
        return tables[0]
    import anndata as ad
    import pandas as pd

    from nimbus_sd._sdata.gates import cell_sections, intensities

    parts = []
    for table in tables:
        of_cell, column = cell_sections(table, section)
        obs = pd.DataFrame({"section": of_cell} if column else {}, index=table.obs_names)
        var = pd.DataFrame(index=table.var_names)
        parts.append(ad.AnnData(intensities(table, layer)[0], obs=obs, var=var))
    return parts[0] if len(parts) == 1 else ad.concat(parts, index_unique="-", keys=list(map(str, stores)))


def _suggested(
    whole: AnnData, names: list[str] | None, confidence: float, quantile: float, max_cells: int, seed: int
) -> pd.DataFrame:
    from nimbus_sd import pp

    return pp.suggest_thresholds(
        whole, names, confidence=confidence, quantile=quantile, max_cells=max_cells, seed=seed
    )


def _read(path: Path, names: list[str] | None) -> pd.DataFrame:
    from nimbus_sd._sdata.gates import MARKER, read_thresholds

    found = read_thresholds(path)
    if names is None:
        return found
    known = found.index.get_level_values(MARKER)
    missing = [n for n in names if n not in known]
    if missing:
        msg = f"--markers: {path} has no thresholds for {', '.join(missing)}"
        raise InputError(msg)
    return found[known.isin(names)]


def _gated(
    tables: Sequence[AnnData],
    stores: Sequence[str],
    found: pd.DataFrame,
    *,
    layer: str | None,
    section: str | None,
    key: str,
    tree: str,
    overwrite: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Label the cells of every table in memory; what came of it."""
    import pandas as pd

    from nimbus_sd import pp

    implied = None if tree in ("auto", "none") else mapping("--tree", tree)
    counts, rules = [], []
    for table, store in zip(tables, stores, strict=True):
        if key in table.layers and not overwrite:
            msg = f"{store}: the table has a layer {key!r} already; pass --overwrite, or another --key-added"
            raise InputError(msg)
        counts.append(pp.gate(table, found, layer=layer, section=section, key_added=key).reset_index())
        if tree == "none" or (tree == "auto" and not _has_lineage(table)):
            table.uns.pop(f"{key}_hierarchy", None)  # of labels that are gone
            continue
        rules.append(pp.curate_hierarchy(table, implied, layer=key).reset_index().assign(store=str(store)))
    whole = pd.concat(counts, ignore_index=True)
    broken = pd.concat(rules, ignore_index=True) if rules else pd.DataFrame()
    lines = [whole.to_string(index=False)]
    if rules:
        cells = int(broken.loc[broken["rule"] == "any", "n_cells"].sum())
        lines.append(f"{cells} cells contradict the hierarchy and became undefined")
    return {"counts": whole, "hierarchy": broken}, lines


def _has_lineage(table: AnnData) -> bool:
    """Whether two markers of the usual tree are there."""
    from nimbus_sd._core.hierarchy import HIERARCHY, contracted

    return bool(contracted(HIERARCHY, list(table.var_names)))


def _persist(sdatas: Sequence[SpatialData], table: str) -> None:
    from nimbus_sd import io

    for sdata in sdatas:
        io.write_table(sdata, table, overwrite=True)


def _draw(whole: AnnData | None, found: pd.DataFrame, sections: list[str] | None, path: Path | None) -> None:
    """Draw into a file; into none, to see whether it can be done."""
    import matplotlib as mpl

    from nimbus_sd import pl

    mpl.use("agg")
    pl.gate(whole, thresholds=found, sections=sections, save=path, return_fig=path is None)
