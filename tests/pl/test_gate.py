"""nb.pl.gate: what is drawn, and lines that follow the mouse."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.backend_bases import MouseEvent
from matplotlib.figure import Figure

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError

LIMITS = {"CD45": (150.0, 400.0, 3000.0), "CD3e": (200.0, 500.0, np.inf)}


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    x = rng.gamma(5, 20, (600, 3)) + (rng.random((600, 3)) < 0.2) * rng.lognormal(7, 0.5, (600, 3))
    x[3, 0] = np.nan
    obs = pd.DataFrame({"section": np.repeat(["a", "b"], 300)}, index=[f"c{i}" for i in range(600)])
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=["CD45", "CD3e", "CD20"]))


def per_section():
    frame = pd.DataFrame(LIMITS, index=["negative", "positive", "overexposed"]).T
    return pd.concat({"b": frame, "a": frame * 1.1}, names=["section", "marker"]).swaplevel()


def mouse(editor, panel, what, x, *, button=1):
    """Send an event at intensity `x` to the figure."""
    canvas = editor.figure.canvas
    px, _ = panel.ax.transData.transform((x, 1.0))
    py = panel.ax.bbox.y0 + panel.ax.bbox.height / 2
    event = MouseEvent(what, canvas, px, py, button=button)
    canvas.callbacks.process(what, event)


def drag(editor, panel, start, *stops):
    mouse(editor, panel, "button_press_event", start)
    for x in stops:
        mouse(editor, panel, "motion_notify_event", x)
    mouse(editor, panel, "button_release_event", stops[-1])


@pytest.fixture
def editor(table):
    found = nb.pl.gate(table, thresholds=LIMITS, edit=True, show=False)
    found.figure.canvas.draw()  # the layout decides where the mouse is
    return found


def test_bars_ranges_lines_and_counts(table):
    axes = nb.pl.gate(table, thresholds=LIMITS, show=False, bins=30)
    assert [ax.get_title(loc="left") for ax in axes] == ["CD45", "CD3e"]
    x = table.X[:, 0]
    ax = axes[0]
    stairs, *spans = ax.patches
    values, edges, _ = stairs.get_data()
    assert values.sum() == 599
    assert edges.size == 31
    assert edges[0] < np.nanmin(x) < np.nanmax(x) < edges[-1]
    np.testing.assert_allclose([s.get_x() for s in spans[1:]], LIMITS["CD45"])
    np.testing.assert_allclose(spans[0].get_x(), ax.get_xlim()[0])
    assert [line.get_xdata()[0] for line in ax.lines] == list(LIMITS["CD45"])
    n = [
        np.sum(x <= 150),
        np.sum((x > 150) & (x < 400)),
        np.sum((x >= 400) & (x < 3000)),
        np.sum(x >= 3000),
    ]
    assert [t.get_text().split()[1] for t in ax.texts] == [f"{v:,}" for v in n]
    assert sum(n) == 599
    # what is infinite stands at the edge
    assert axes[1].lines[2].get_xdata()[0] == axes[1].get_xlim()[1]
    assert [t.get_text() for t in axes[0].figure.legends[0].get_texts()] == [
        "negative",
        "uncertain",
        "positive",
        "over-exposed",
    ]


def test_thresholds_per_section_and_of_the_last_call(table, tmp_path):
    axes = nb.pl.gate(table, thresholds=per_section(), show=False)
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == ["CD45 · b", "CD45 · a", "CD3e · b", "CD3e · a"]
    assert axes[1].patches[0].get_data()[0].sum() == 299  # of section a, without the NaN
    nb.pp.gate(table, per_section())
    again = nb.pl.gate(table, "CD45", sections="a", show=False)
    assert len(again) == 1
    assert again[0].lines[0].get_xdata()[0] == pytest.approx(165)
    nb.pl.gate(table, save=tmp_path / "g.png")
    assert (tmp_path / "g.png").stat().st_size > 1000
    fig = Figure()
    ax = fig.subplots()
    assert nb.pl.gate(table, "CD3e", thresholds=LIMITS, ax=ax) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("intensity", "cells")
    assert nb.pl.gate(table, "CD3e", thresholds=LIMITS, return_fig=True).axes[0].get_xlabel() == "intensity"


def test_a_dragged_line_moves_its_threshold_range_and_counts(table, editor):
    panel = editor.panels["CD45"]
    before = panel.counts()
    drag(editor, panel, 400, 500, 700)
    assert editor.thresholds.loc["CD45", "positive"] == pytest.approx(700, rel=0.02)
    assert editor.thresholds.loc["CD45", ["negative", "overexposed"]].tolist() == [150, 3000]
    assert editor.thresholds.loc["CD3e"].tolist() == [200, 500, np.inf]
    now = panel.counts()
    assert now.sum() == before.sum()
    assert now[1] > before[1]
    assert panel.texts[2].get_text().startswith(f"positive {now[2]:,} ")
    assert panel.lines[1].get_xdata()[0] == pytest.approx(panel.spans[2].get_x())
    drag(editor, editor.panels["CD3e"], 500, 450)
    assert editor.thresholds.loc["CD3e", "positive"] == pytest.approx(450, rel=0.02)


def test_lines_keep_their_order(editor):
    panel = editor.panels["CD45"]
    drag(editor, panel, 400, 120)
    assert panel.limits == [150, 150, 3000]
    drag(editor, panel, 152, 300)  # of two in one place the upper one moves up
    assert panel.limits[0] == 150
    assert panel.limits[1] == pytest.approx(300, rel=0.02)
    drag(editor, panel, 150, 2500)
    assert panel.limits[0] == panel.limits[1] < 3000
    edge = editor.panels["CD3e"].ax.get_xlim()[1]
    drag(editor, editor.panels["CD3e"], edge * 0.999, 2000)  # an infinite one is held at the edge
    assert editor.panels["CD3e"].limits[2] == pytest.approx(2000, rel=0.02)


def test_clicks_elsewhere_move_nothing(editor):
    panel = editor.panels["CD45"]
    drag(editor, panel, 1000, 2000)
    mouse(editor, panel, "button_press_event", 400, button=3)
    mouse(editor, panel, "motion_notify_event", 800)
    mouse(editor, panel, "button_press_event", 400)
    mouse(editor, editor.panels["CD3e"], "motion_notify_event", 900)  # left the panel
    mouse(editor, panel, "button_release_event", 400)
    mouse(editor, panel, "motion_notify_event", 800)
    editor.figure.canvas.toolbar = type("Toolbar", (), {"mode": "zoom rect"})()
    drag(editor, panel, 400, 800)
    assert panel.limits == list(LIMITS["CD45"])


def test_edited_thresholds_gate_and_are_saved(table, editor, tmp_path):
    drag(editor, editor.panels["CD45"], 400, 600)
    nb.pp.gate(table, editor.thresholds)
    labels = table.layers["gated"].copy()
    assert (labels[:, 0] == 1).sum() == editor.panels["CD45"].counts()[2]
    editor.save(tmp_path / "t.csv")
    nb.pp.gate(table, tmp_path / "t.csv")
    np.testing.assert_array_equal(table.layers["gated"], labels)
    with pytest.raises(InputError, match="does not exist; create it first"):
        editor.save(tmp_path / "no" / "t.csv")


def test_a_figure_that_cannot_be_written_is_refused_before_it_is_drawn(table, tmp_path):
    for name in ("x.foo", "no/x.png"):
        with pytest.raises(InputError, match="save="):
            nb.pl.gate(table, "CD45", thresholds=per_section(), save=tmp_path / name)
    nb.pl.gate(table, "CD45", thresholds=per_section(), save=tmp_path / "x.PNG")
    assert (tmp_path / "x.PNG").is_file()


def test_editing_sections_keeps_rows_that_are_not_drawn(table):
    editor = nb.pl.gate(table, "CD45", thresholds=per_section(), sections=["a"], edit=True, show=False)
    editor.figure.canvas.draw()
    drag(editor, editor.panels["CD45", "a"], 440, 800)
    changed = editor.thresholds
    assert changed.loc[("CD45", "a"), "positive"] == pytest.approx(800, rel=0.02)
    rest = changed.drop(("CD45", "a"))
    pd.testing.assert_frame_equal(rest, per_section().drop(("CD45", "a")))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"markers": "CD20"}, ElementNotFoundError, "no thresholds for CD20; there are some for CD45, CD3e"),
        ({"markers": "CD99"}, ElementNotFoundError, "no marker"),
        ({"thresholds": None}, ElementNotFoundError, r"uns\['gated'\] holds no thresholds"),
        ({"sections": "a"}, InputError, "the same for all"),
        ({"thresholds": per_section(), "sections": "z"}, ElementNotFoundError, "valid: b, a"),
        ({"thresholds": {"CD45": (3, 2, 1)}}, InputError, "out of order"),
        ({"thresholds": {"CD99": (1, 2, 3)}}, InputError, "name CD99"),
        ({"bins": 1}, InputError, "at least 2 bars"),
        ({"ax": Figure().subplots()}, InputError, "ax= takes one panel, there are 2"),
        ({"layer": "raw"}, ElementNotFoundError, "no layer 'raw'"),
    ],
)
def test_bad_arguments(table, arguments, error, match):
    with pytest.raises(error, match=match):
        nb.pl.gate(table, **({"thresholds": LIMITS, "show": False} | arguments))


def test_too_many_panels(table):
    table.obs["section"] = [f"s{i % 30}" for i in range(600)]
    rows = {("CD45", f"s{i}"): (1, 2, 3) for i in range(30)}
    with pytest.raises(InputError, match="30 panels; between 1 and 24 fit"):
        nb.pl.gate(table, thresholds=rows)


def test_empty_columns_can_be_drawn(table):
    table.X[:, 0] = np.nan
    table.X[:, 1] = 0
    axes = nb.pl.gate(table, thresholds=LIMITS, show=False)
    axes[0].figure.canvas.draw()
    assert axes[0].texts[0].get_text() == "negative 0 (–)"
    assert axes[1].texts[0].get_text() == "negative 600 (100.0%)"
