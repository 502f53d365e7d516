"""The review page in a real browser: what a reviewer does, found again after a reload."""

import os
import time

import numpy as np
import pytest

from nimbus_sd import app
from nimbus_sd.app._server import ReviewServer
from nimbus_sd.app._session import Session

pytestmark = pytest.mark.filterwarnings("ignore")  # spatialdata's and zarr's own
# ms an interaction may take, until it is painted: 100 where the test has the cores to itself (nox -s browser)
LIMIT = 100 if os.environ.get("NIMBUS_SD_ALONE") else 1000
READY = "body[data-ready]"


def opened(browser, server, **options):
    page = browser.new_page(viewport={"width": 1440, "height": 860}, **options)
    page.set_default_timeout(8000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    # what the policy of the page forbids ends up on the console
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.goto(server.url)
    page.wait_for_selector(READY)
    return page


def until(page, condition, seconds=8):
    """Wait for a condition; playwright's own way of waiting needs eval, which the page forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def names(page):
    return page.eval_on_selector_all(".row", "rows => rows.map(row => row.dataset.name)")


def choose(page, *clusters):
    for i, name in enumerate(clusters):
        page.click(f'.row[data-name="{name}"]', modifiers=["Control"] if i else [])


def test_merge_rename_undo_label_ten_cells_reload_and_find_them_again(browser, stored):
    adata = stored["nimbus"]
    with app.review(stored, reviewer="anna") as server:
        page = opened(browser, server)
        assert sorted(names(page)) == ["0", "1", "2", "3", "4"]
        choose(page, "1", "3")
        page.click("#merge")
        until(page, "document.querySelectorAll('.row').length === 4")
        into = next(name for name in ("1", "3") if name in names(page))
        assert page.get_attribute(f'.row[data-name="{into}"]', "aria-selected") == "true"
        page.keyboard.press("r")
        page.fill("#ask input", "T cell")
        page.keyboard.press("Enter")
        page.wait_for_selector('.row[data-name="T cell"]')
        choose(page, "0", "4")
        page.keyboard.press("m")
        until(page, "document.querySelectorAll('.row').length === 3")
        page.keyboard.press("z")
        until(page, "document.querySelectorAll('.row').length === 4")
        assert set(adata.obs["metacluster"]) == {"0", "2", "4", "T cell"}

        page.click("nav [data-tab=cells]")
        page.wait_for_selector(".thumb")
        rows = page.eval_on_selector_all(".thumb", "all => all.slice(0, 10).map(t => Number(t.dataset.row))")
        keys = "pnspnspnpp"
        for key in keys:
            page.keyboard.press(key)
        until(page, "document.getElementById('tally').textContent.startsWith('10 reviewed')")
        wanted = [{"p": 1.0, "n": 0.0, "s": np.nan}[key] for key in keys]
        np.testing.assert_array_equal(adata.layers["gold"][rows, 0], wanted)

        page.reload()
        page.wait_for_selector(READY)
        assert set(names(page)) == {"0", "2", "4", "T cell"}
        page.click("nav [data-tab=cells]")
        page.select_option("#order", "reviewed")
        until(page, "document.querySelectorAll('.thumb[data-answer]').length === 10")
        found = page.eval_on_selector_all(
            ".thumb", "all => all.map(t => [Number(t.dataset.row), t.dataset.answer])"
        )
        words = {"p": "positive", "n": "negative", "s": "skip"}
        assert dict(found) == {row: words[key] for row, key in zip(rows, keys, strict=True)}
        assert page.errors == []
    # another server, from the store and the log alone
    again = Session(stored)
    assert set(again.clusters.names) == {"0", "2", "4", "T cell"}
    assert len(again.gold.opinions) == 10


def test_saving_and_progress(browser, stored, tmp_path):
    import spatialdata as sd

    with app.review(stored, reviewer="anna") as server:
        page = opened(browser, server)
        page.click("nav [data-tab=cells]")
        page.wait_for_selector(".thumb")
        page.keyboard.press("p")
        until(page, "document.getElementById('save').textContent === 'Save (1)'")
        page.click("#save")
        until(page, "document.getElementById('save').textContent === 'Saved'")
        page.click("nav [data-tab=progress]")
        page.wait_for_selector("#progress tr:not(.none) td")
        shown = page.eval_on_selector_all(
            "#progress tbody tr:first-child td", "all => all.map(t => t.textContent)"
        )
        assert shown[:3] == ["CD3", "1", "1"]
        assert page.errors == []
    assert np.nansum(sd.read_zarr(tmp_path / "t.zarr")["nimbus"].layers["gold"]) == 1


def test_a_failed_request_is_said_and_undone(browser, small):
    with app.review(small, reviewer="anna") as server:
        page = opened(browser, server)
        page.click("nav [data-tab=cells]")
        page.wait_for_selector(".thumb")
        page.route("**/api/answers", lambda route: route.abort())
        page.keyboard.press("p")
        page.wait_for_selector("#toast.bad")
        assert "Not saved" in page.text_content("#toast")
        assert page.query_selector(".thumb[data-answer]") is None


def test_pixels_are_where_the_cells_are(browser, small):
    with app.review(small, reviewer="anna") as server:
        page = opened(browser, server)
        view = "window.reviewView"
        until(page, f"{view}.tiles.tiles.size && [...{view}.tiles.tiles.values()].every(t => t.drawn >= 0)")
        field = server.session.fields[0]
        for place in (0, 7, 35):
            x, y = field.xy[place]
            where = page.evaluate(
                f"([x, y]) => {{ const c = {view}.camera, v = {view}; "
                "return [((x - c.x) * c.zoom + v.canvas.width / 2) / v.ratio, "
                "((y - c.y) * c.zoom + v.canvas.height / 2) / v.ratio]; }",
                [float(x), float(y)],
            )
            assert page.evaluate(f"([x, y]) => {view}.cellAt(x, y)", where) == place
        # a click on a cell chooses its cluster
        box = page.query_selector("#view").bounding_box()
        page.mouse.click(box["x"] + where[0], box["y"] + where[1])
        clusters = server.session.adata.obs["metacluster"].iloc[field.rows].tolist()
        assert page.get_attribute(f'.row[data-name="{clusters[35]}"]', "aria-selected") == "true"
        # its cells take its colour, all others show the image
        page.eval_on_selector("#fill", "s => { s.value = 100; s.dispatchEvent(new Event('input')); }")
        page.wait_for_timeout(300)
        heatmap = server.session.clusters.heatmap()
        color = heatmap["colors"][heatmap["names"].index(clusters[35])]
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        for place in (35, clusters.index(next(c for c in clusters if c != clusters[35]))):
            x, y = field.xy[place]
            shown = page.evaluate(
                f"([x, y]) => {{ const c = {view}.camera, v = {view}; return [...v.context.getImageData("
                "(x - c.x) * c.zoom + v.canvas.width / 2, (y - c.y) * c.zoom + v.canvas.height / 2, 1, 1)"
                ".data].slice(0, 3); }",
                [float(x), float(y)],
            )
            assert (np.abs(np.subtract(shown, wanted)).max() <= 2) == (place == 35)


def test_a_hundred_thousand_cells_stay_fluid(browser, reviewed):
    session = Session(reviewed(1, side=4128, pitch=13))
    assert session.adata.n_obs > 100_000
    server = ReviewServer(session, reviewer="anna")
    try:
        page = opened(browser, server)
        page.wait_for_timeout(1500)
        stage = page.query_selector("#view").bounding_box()
        x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
        choose(page, "1", "3")
        slide = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"
        for value in (20, 80):
            page.eval_on_selector("#fill", slide, value)
            page.wait_for_timeout(250)
        for value in (90, 140, 200):
            page.eval_on_selector(".range input:last-child", slide, value)
            page.wait_for_timeout(250)
        page.wait_for_timeout(300)
        page.mouse.move(x, y)
        for _ in range(4):
            page.mouse.wheel(0, -240)
            page.wait_for_timeout(350)
        page.mouse.down()
        for i in range(8):
            page.mouse.move(x - 20 * i, y - 10 * i)
        page.mouse.up()
        page.click("#merge")
        until(page, "document.querySelectorAll('.row').length === 4")
        page.click("#undo")
        until(page, "document.querySelectorAll('.row').length === 5")
        page.click("nav [data-tab=cells]")
        page.wait_for_selector(".thumb")
        page.wait_for_timeout(1500)
        for key in "pnsppnns":
            page.keyboard.press(key)
            page.wait_for_timeout(120)
        took = page.evaluate("window.reviewTimings")
    finally:
        server.stop()
    by_name = {}
    for each in took:
        by_name.setdefault(each["name"], []).append(round(each["ms"], 1))
    print(by_name)
    assert {"select", "fill", "contrast", "zoom", "pan", "merge", "undo", "answer"} <= set(by_name)
    slow = {name: ms for name, ms in by_name.items() if np.median(ms) > LIMIT}
    assert not slow, slow


def test_the_widget_shows_the_page_in_a_frame(browser, small):
    pytest.importorskip("anywidget")
    widget = app.ReviewWidget(small, reviewer="anna", height=500)
    try:
        page = browser.new_page(viewport={"width": 1200, "height": 600})
        page.set_default_timeout(8000)
        page.set_content("<div id=cell></div>")
        page.evaluate(
            """async ([source, values]) => {
                const file = new Blob([source], { type: "text/javascript" });
                const module = await import(URL.createObjectURL(file));
                const model = { get: (key) => values[key], on: () => {} };
                module.default.render({ model, el: document.getElementById("cell") });
            }""",
            [str(widget._esm), {"address": widget.address, "height": widget.height}],
        )
        frame = page.wait_for_selector("iframe").content_frame()
        frame.wait_for_selector(READY)
        frame.click("nav [data-tab=cells]")
        frame.wait_for_selector(".thumb")
        frame.press("body", "n")
        until(frame, "document.getElementById('tally').textContent.startsWith('1 reviewed')")
    finally:
        widget.close()
    assert not widget.server.running
    assert np.nansum(small["nimbus"].layers["gold"] == 0) == 1
