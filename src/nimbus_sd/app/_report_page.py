"""Put a report together: sections in the order in which one asks."""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from string import Template

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nimbus_sd._core.version import __version__
from nimbus_sd.app import _report_html as h
from nimbus_sd.app import _report_maps as maps
from nimbus_sd.app._report_facts import UNSURE, Facts
from nimbus_sd.app._report_words import notes, percent, rule_notes, story
from nimbus_sd.pl._colours import group_colours

_MAX_COLUMNS = 80
_SCORE_MAPS = 6
_VERDICTS = {"": "good", "empty": "empty", "sparse": "sparse", "saturated": "full scale", "debris": "debris"}


def page(
    sdata: SpatialData | None,
    adata: ad.AnnData,
    facts: Facts,
    columns: list[str],
    *,
    table: str,
    title: str,
    max_samples: int,
) -> str:
    """The whole page.

    Parameters
    ----------
    sdata
        None leaves out whatever needs pixels.
    adata, facts
        The table, and what was counted in it.
    columns
        Groups of cells to show.
    table
        Its name.
    title
        Heading.
    max_samples
        Samples on maps.
    """
    drawn = maps.largest(facts, max_samples)
    parts = [
        _notes(facts),
        _run(facts),
        _samples(facts),
        _normalisation(facts),
        _distributions(facts),
        _fractions(facts),
        *(_groups(sdata, adata, facts, c, drawn, table) for c in columns),
        _maps(sdata, adata, facts, drawn, table),
    ]
    template = Template(_asset("report.html"))
    n_samples = len(facts.samples)
    count = (
        f"{adata.n_obs:,} cells × {adata.n_vars} marker{'s' * (adata.n_vars != 1)} in {n_samples} "
        f"sample{'s' * (n_samples != 1)}, table “{table}”"
    )
    return template.substitute(
        title=escape(title),
        count=escape(count),
        style=_asset("report.css"),
        contents=_contents(parts),
        body="\n".join(parts),
        version=escape(__version__),
    )


def _asset(name: str) -> str:
    return files("nimbus_sd.app").joinpath("templates", name).read_text(encoding="utf-8")


def _contents(parts: list[str]) -> str:
    found = [re.search(r'<section id="([^"]+)">\n<h2>(.*?)</h2>', part) for part in parts]
    return "\n".join(f'<li><a href="#{m[1]}">{m[2]}</a></li>' for m in found if m)


def _notes(facts: Facts) -> str:
    found = notes(facts)
    if not found:
        return h.section("notes", "Worth knowing", h.paragraph("Nothing stands out."))
    items = [
        f'<li class="{"grave" if n.grave else "mild"}">'
        + (f"<b>{escape(n.about)}:</b> {escape(n.text)}" if n.about else escape(n.text))
        + "</li>"
        for n in found
    ]
    return h.section("notes", "Worth knowing", f'<ul class="notes">{"".join(items)}</ul>')


def _run(facts: Facts) -> str:
    rows = "".join(f"<dt>{escape(q)}</dt><dd>{escape(a)}</dd>" for q, a in story(facts))
    return h.section("run", "What was run", f"<dl>{rows}</dl>")


def _samples(facts: Facts) -> str:
    most = facts.samples["cells"].max()
    positive = facts.fractions.mean()
    rows = [
        [
            str(name),
            h.bar(row["cells"] / most, f"{row['cells']:,}"),
            h.cell(f"{row['area']:.0f}" if np.isfinite(row["area"]) else "–"),
            h.cell(percent(positive[name])),
        ]
        for name, row in facts.samples.iterrows()
    ]
    head = ["Sample", "Cells", f"Median area, {facts.area_unit}", "Positive calls"]
    caption = "Cells of each sample, and the share of all calls, over markers, that are positive."
    return h.section("samples", "Cells", h.table(head, rows, caption=caption, kind="narrow"))


def _normalisation(facts: Facts) -> str:
    rows = [
        [
            str(name),
            h.cell(_number(row["scale"])),
            h.cell(_number(row["maximum"])),
            h.cell(_saturated(row)),
            h.bar(row["bright"], percent(row["bright"])),
            _verdict(row),
        ]
        for name, row in facts.markers.iterrows()
    ]
    head = ["Marker", "Scale", "Brightest pixel", "Pixels at full scale", "Bright cells", "Verdict"]
    caption = (
        "Scale: the intensity that counts as 1, in image units. Bright cells: 99th percentile of the cells' "
        "mean intensity as a share of the scale. The network sees nothing of what lies above the scale."
    )
    return h.section("normalisation", "Normalisation", h.table(head, rows, caption=caption))


def _verdict(row: pd.Series) -> str:
    if not row["flag"] and not np.isfinite(row["scale"]):
        return h.cell("–")
    return h.cell(_VERDICTS.get(row["flag"], str(row["flag"])), kind="bad" if row["flag"] else "good")


def _saturated(row: pd.Series) -> str:
    n, total = row["n_saturated"], row["n_pixels"]
    if not np.isfinite(n):
        return "–"
    share = f" ({percent(n / total)})" if n and np.isfinite(total) and total > 0 else ""
    return f"{n:,.0f}{share}"


def _number(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _distributions(facts: Facts) -> str:
    drawn = []
    for i, (name, row) in enumerate(facts.markers.iterrows()):
        text = f"{percent(row['positive'])} positive · {percent(row['unsure'])} unsure"
        line = None if facts.expression is None else facts.expression[i]
        drawn.append(h.histogram(str(name), facts.scores[i], line, threshold=facts.threshold, text=text))
    explained = (
        f"Share of cells per score, on a square-root axis so that rare cells show; the dashed line is the "
        f"threshold, {facts.threshold:g}. Two heaps at the ends are what one hopes for; unsure are cells "
        f"between {UNSURE[0]} and {UNSURE[1]}."
    )
    if facts.expression is not None:
        explained += " The thin line is integrated expression, divided by the scale."
    grid = f'<div class="grid">{"".join(drawn)}</div>'
    return h.section("distributions", "Scores", h.paragraph(explained), grid)


def _fractions(facts: Facts) -> str:
    caption = f"Cells with a score above {facts.threshold:g}, per cent."
    said = _left_out(facts.fractions.shape[1])
    found = facts.fractions[maps.largest(facts, _MAX_COLUMNS)]
    shown = h.heat_table(found, facts.markers["positive"], caption=caption, corner="Marker")
    return h.section("fractions", "Positive fractions", said, shown)


def _left_out(n: int) -> str:
    if n <= _MAX_COLUMNS:
        return ""
    return h.paragraph(
        f"The {_MAX_COLUMNS} samples with most cells, of {n}; “all” is all of them.", kind="quiet"
    )


def _groups(
    sdata: SpatialData | None, adata: ad.AnnData, facts: Facts, column: str, drawn: list[str], table: str
) -> str:
    groups = pd.Categorical(adata.obs[column].astype("category")).remove_unused_categories()
    names = list(map(str, groups.categories))
    colours = group_colours(adata, column)
    known = groups.codes >= 0
    counts = np.zeros((len(names), len(facts.samples)), np.int64)
    np.add.at(counts, (groups.codes[known], facts.sample[known]), 1)
    size = counts.sum(1)
    order = np.argsort(-size, kind="stable")
    rows = [
        [
            names[i],
            h.swatch(colours.get(names[i], "#999999"), f"{size[i]:,}"),
            h.bar(size[i] / adata.n_obs, percent(size[i] / adata.n_obs)),
            h.cell(f"{(counts[i] > 0).sum()} of {len(facts.samples)}"),
        ]
        for i in order
    ]
    none = int((~known).sum())
    parts = [
        h.table(["Group", "Cells", "Share", "Samples"], rows, kind="narrow", caption=f"Groups of {column}."),
        h.paragraph(f"{none:,} cells ({percent(none / adata.n_obs)}) have no group.") if none else "",
        *(h.paragraph(text) for text in rule_notes(adata.uns.get(column))),
        maps.group_heatmap(adata, facts, column),
        maps.group_maps(sdata, adata, facts, column, drawn, table),
    ]
    if counts.shape[1] > 1:
        shares = pd.DataFrame(counts / np.maximum(counts.sum(0), 1), names, facts.samples.index).iloc[order]
        whole = pd.Series(size / max(size.sum(), 1), names)
        caption = f"Make-up of each sample by {column}, per cent of its cells."
        shares = shares[maps.largest(facts, _MAX_COLUMNS)]
        parts.append(h.heat_table(shares, whole, caption=caption, corner="Group"))
    heading = f"{column.replace('_', ' ').capitalize()}"
    return h.section(f"groups-{re.sub(r'[^A-Za-z0-9]+', '-', column)}", heading, *parts)


def _maps(sdata: SpatialData | None, adata: ad.AnnData, facts: Facts, drawn: list[str], table: str) -> str:
    shown = [s for s in drawn if s in maps.largest(facts, _SCORE_MAPS)]
    said = "Scores where the cells lie; the brighter, the surer that the cell is positive."
    if len(shown) < len(facts.samples):
        said += f" {len(shown)} of {len(facts.samples)} samples, those with most cells."
    pixels = []
    if sdata is not None:
        piece = maps.image_piece(sdata, adata, facts, maps.largest(facts, 1)[0], table)
        pixels = [piece, maps.unsure_cells(sdata, facts, table)]
    return h.section("maps", "Maps", h.paragraph(said), maps.score_maps(adata, facts, shown), *pixels)
