"""The report page: one file, every section, true numbers, plain warnings, nothing asked of the network."""

from __future__ import annotations

import base64
import io
import re
import sys
from html.parser import HTMLParser

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nimbus_sd import app, cli, tl
from nimbus_sd._core.errors import ElementNotFoundError, InputError

SECTIONS = ["notes", "run", "samples", "normalisation", "distributions", "fractions", "maps"]
VOID = {"meta", "img", "br", "line", "path"}


class Page(HTMLParser):
    """Sections, table rows, pictures and the text, with a check that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str | None] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(found["id"])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append(found)
        elif tag == "a":
            self.links.append(found["href"])
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (found.get(name) or "data:").startswith(("data:image/png;base64,", "#", "data:"))

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.words.append(data)
        if any(tag in ("th", "td") for tag in self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def rows(self, corner: str) -> dict[str, list[str]]:
        """First table whose first heading is `corner`, by row name."""
        found = next(t for t in self.tables if t[0][0] == corner)
        return {row[0]: row[1:] for row in found[1:]}


def plain(n_samples: int = 2, n_markers: int = 3, n: int = 60, *, seed: int = 0) -> SpatialData:
    """A table alone: scores, coordinates and no word about where they come from."""
    rng = np.random.default_rng(seed)
    total = n_samples * n
    obs = pd.DataFrame(
        {
            "region": np.repeat([f"s{i}_labels" for i in range(n_samples)], n),
            "instance_id": np.tile(np.arange(n) + 1, n_samples),
            "area_px": rng.integers(20, 200, total),
        },
        index=[f"c{i}" for i in range(total)],
    )
    adata = ad.AnnData(
        rng.beta(0.3, 1, (total, n_markers)).astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=[f"m{i}" for i in range(n_markers)]),
    )
    adata.obsm["spatial"] = rng.uniform(0, 500, (total, 2))
    return SpatialData(tables={"nimbus": adata})


@pytest.fixture(autouse=True)
def _no_figure_stays():
    before = plt.get_fignums()
    yield
    assert plt.get_fignums() == before


@pytest.fixture
def read(tmp_path):
    """Write a report and parse it."""

    def run(sdata, **options):
        path = app.report(sdata, tmp_path / "page.html", overwrite=True, **options)
        assert path == tmp_path / "page.html"
        assert [p.name for p in tmp_path.iterdir() if "page" in p.name] == ["page.html"]
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://|//cdn|@import|url\(|<script|<link", text)
        return Page(text)

    return run


@pytest.fixture
def scored(factory, score):
    """Two fields that were really predicted, with clusters."""
    sdata = factory(2)
    table = score(sdata)
    table.obs["metacluster"] = pd.Categorical(np.where(np.arange(table.n_obs) % 3 == 0, "T <cell>", "B & co"))
    return sdata


def test_every_section_of_a_predicted_table(scored, read):
    page = read(scored, title="Trial <1>")
    assert page.sections == [*SECTIONS[:-1], "groups-metacluster", "maps"]
    assert page.links == [f"#{s}" for s in page.sections]
    assert "Trial <1>" in page.text
    assert f"{scored['nimbus'].n_obs:,} cells × 3 markers in 2 samples" in page.text
    for part in ("µm per pixel", "99.99th percentile of all pixels of 2 images", "Made", "float32 on cpu"):
        assert part in page.text
    assert "T <cell>" in page.rows("Group")
    # heatmap, map of groups, scores of two samples, a piece of the image, unsure cells
    assert len(page.images) == 6
    for image in page.images:
        assert image["alt"]
        pixels = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        assert min(pixels.size) > 60
        assert len(np.unique(np.asarray(pixels.convert("RGB")).reshape(-1, 3), axis=0)) > 8


def test_numbers_are_those_of_the_table(read):
    sdata = plain(3, 4, 80)
    adata = sdata["nimbus"]
    adata.X[5, 1] = np.nan
    page = read(sdata, threshold=0.4)
    frame = adata.to_df()
    called = (frame > 0.4).where(frame.notna())
    each = called.astype(float).groupby(adata.obs["region"].astype(str)).mean()
    rows = page.rows("Marker")  # the normalisation comes first; fractions have the samples as columns
    assert set(rows) == set(frame.columns)
    found = next(t for t in page.tables if t[0] == ["Marker", "all", "s0", "s1", "s2"])
    for row in found[1:]:
        shares = each[row[0]].to_numpy()
        assert row[2:] == [f"{100 * s:.0f}" if s >= 0.005 else "<1" if s else "0" for s in shares]
        assert row[1].startswith(f"{100 * called[row[0]].mean():.0f}"[:1])
    assert page.rows("Sample")["s1"][:2] == ["80", f"{adata.obs['area_px'][80:160].median():.0f}"]
    assert "m1: 0.4 % of the cells have no score" in page.text


@pytest.mark.parametrize(("n_samples", "n_markers"), [(1, 3), (40, 60)])
def test_from_one_sample_to_many(read, n_samples, n_markers):
    page = read(plain(n_samples, n_markers, 30))
    assert page.sections == SECTIONS
    assert len(page.rows("Sample")) == n_samples
    assert sum(m.startswith("m") for m in page.rows("Marker")) == n_markers
    fractions = [t for t in page.tables if t[0][:1] == ["Marker"] and t[0][1].startswith("all")]
    assert sum(len(t[0]) - 2 for t in fractions) == (40 if n_samples > 1 else 0)
    assert max(len(t[0]) for t in fractions) <= 32
    assert len(page.images) == min(n_samples, 6)


def test_warnings_in_plain_words(read):
    sdata = plain(6, 6, 60)
    adata = sdata["nimbus"]
    adata.var_names = ["COX2", "debris", "none", "all", "grey", "odd"]
    adata.var["qc"] = ["saturated", "debris", "", "", "", ""]
    adata.var["scale"] = 255.0
    adata.X[:] = 0.01
    adata.X[:, 3], adata.X[:, 4] = 0.99, 0.5
    adata.X[adata.obs["region"].to_numpy() == "s4_labels", 5] = 0.9
    adata.uns["nimbus"] = {"precision_difference": 0.5, "mpp": {"s0_labels": 0.5, "s1_labels": 1.0}}
    page = read(sdata)
    items = page.text.split("Worth knowing")[-1].split("What was run")[0]
    assert items.index("COX2: the scale is the detector's full scale") < items.index(
        "none: no cell is positive"
    )
    for words in ("debris: the scale is far above", "all: 100 % of the cells are positive", "grey: 100 %",
                  "odd 100 % (0 %)", "by up to 0.500", "pixel size (0.5, 1 µm)"):  # fmt: skip
        assert words in items, words


def test_a_healthy_table_has_nothing_to_warn_of(read):
    sdata = plain(2, 2, 200)
    adata = sdata["nimbus"]
    adata.X[:] = np.where(np.random.default_rng(0).random(adata.shape) < 0.3, 0.95, 0.03)
    adata.var["scale"], adata.var["qc"] = 10.0, ""
    assert "Nothing stands out." in read(sdata).text


def test_scores_in_a_layer_and_no_coordinates(read):
    sdata = plain()
    adata = sdata["nimbus"]
    adata.layers["nimbus"] = np.full(adata.shape, 0.9, np.float32)
    adata.X[:] = 1000.0
    del adata.obsm["spatial"]
    page = read(sdata, layer="nimbus")
    assert page.rows("Sample")["s0"][2] == "100 %"
    assert "no coordinates" in page.text
    assert page.images == []


def test_groups_of_ones_own_and_cells_without_one(read):
    sdata = plain()
    adata = sdata["nimbus"]
    adata.obs["kind of cell"] = pd.Categorical(np.where(np.arange(120) < 20, None, "a"))
    page = read(sdata, groupby="kind of cell", markers=["m1"], images=False)
    assert "groups-kind-of-cell" in page.sections
    assert "20 cells (17 %) have no group" in page.text
    assert page.rows("Group")["a"][:2] == ["100", "83 %"]


def test_phenotypes_tell_of_contradictions_and_the_unassigned(read):
    adata = plain()["nimbus"]
    keys = {"region": ["s0_labels", "s1_labels"], "region_key": "region", "instance_key": "instance_id"}
    adata.obs["region"] = adata.obs["region"].astype("category")
    with pytest.warns(UserWarning, match="which is not present"):
        sdata = SpatialData(tables={"nimbus": TableModel.parse(adata, **keys)})
    rules = {"A": {"pos": ["m0"]}, "B": {"pos": ["m1"]}}
    adata.X[:4, :2], adata.X[4:, 1] = 0.9, 0.1
    tl.phenotype(adata, rules)
    page = read(sdata)
    share = (adata.obs["phenotype"] == "unassigned").mean()
    assert f"{100 * share:.0f} % of the cells fit no rule" in page.text
    assert len(page.images) == 4  # heatmap; dots, as there are no labels to draw; scores of two samples
    assert "markers that should exclude each other: m0 and m1 (4)." in page.text


def test_the_same_table_gives_the_same_page(read, tmp_path):
    sdata = plain()
    read(sdata)
    first = (tmp_path / "page.html").read_bytes()
    read(sdata)
    assert (tmp_path / "page.html").read_bytes() == first


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"table": "other"}, ElementNotFoundError, "no table 'other' in the object; tables: 'nimbus'"),
        ({"layer": "other"}, ElementNotFoundError, "no layer 'other'"),
        ({"groupby": "other"}, ElementNotFoundError, "no column 'other'"),
        ({"markers": ["CD3"]}, ElementNotFoundError, "no marker"),
        ({"threshold": 1.5}, InputError, "threshold=1.5"),
        ({"max_samples": 0}, InputError, "max_samples=0"),
        ({"out": "page.txt"}, InputError, "ends in .html"),
        ({"out": "missing/page.html"}, InputError, "does not exist; create it first"),
        ({"out": "there.html"}, InputError, "pass overwrite=True"),
        ({"out": "folder.html", "overwrite": True}, InputError, "is a folder"),
    ],
)
def test_bad_requests_leave_nothing(tmp_path, options, error, words):
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    options = dict(options)
    out = tmp_path / options.pop("out", "page.html")
    with pytest.raises(error, match=re.escape(words)):
        app.report(plain(), out, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.html", "there.html"]
    assert (tmp_path / "there.html").read_text() == "mine"


@pytest.mark.parametrize("value", [7.0, -0.1, np.inf])
def test_values_that_are_no_scores(tmp_path, value):
    sdata = plain()
    sdata["nimbus"].X[3, 2] = value
    with pytest.raises(InputError, match=r"marker 'm2'.*no scores"):
        app.report(sdata, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_keeps_the_old_page(tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    out.write_text("old")
    monkeypatch.setattr("nimbus_sd.app._report.page", lambda *_, **__: "\ud800")  # can't be encoded
    with pytest.raises(UnicodeEncodeError):
        app.report(plain(), out, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert out.read_text() == "old"


def test_the_command_line_writes_it_and_says_where(scored, tmp_path, monkeypatch, capsys):
    store, out = tmp_path / "tissue.zarr", tmp_path / "page.html"
    scored.write(store)
    for arguments, code, words in (
        ([store, "--out", out, "--markers", "CD3,CD8", "--max-samples", "1"], 0, f"-> {out}"),
        ([store, "--out", out], 1, "pass --overwrite to replace it"),
        ([store, "--out", out, "--overwrite", "--table", "other"], 1, "no table 'other'"),
        ([store, "--out", tmp_path / "page.txt"], 1, "ends in .html"),
        ([tmp_path, "--out", tmp_path / "other.html"], 1, "not a SpatialData zarr store"),
    ):
        monkeypatch.setattr(sys, "argv", ["nimbus-sd", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert (end.value.code or 0) == code
        assert words in " ".join((said.out + said.err).split())
    page = Page(out.read_text(encoding="utf-8"))
    assert "groups-metacluster" in page.sections
    assert "tissue" in page.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "tissue.zarr"]


def test_a_browser_shows_it_without_asking_for_anything(browser, scored, tmp_path):
    path = app.report(scored, tmp_path / "page.html")
    for scheme, width in (("light", 1300), ("dark", 400)):
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked, said = [], []
        tab.on("request", lambda r, asked=asked: asked.append(r.url))
        tab.on("console", lambda m, said=said: said.append(m.text))
        tab.goto(path.as_uri())
        assert [u for u in asked if not u.startswith("data:")] == [path.as_uri()]
        assert said == []
        # wide tables scroll in their own box, never the page
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 60)")
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
        tab.click("nav a[href='#fractions']")
        assert tab.url.endswith("#fractions")
