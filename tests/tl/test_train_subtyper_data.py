"""What a training notices about its data: whose cells they are, where they lie, what they were drawn for."""

from __future__ import annotations

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from spatialdata import read_zarr
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import get_transformation
from tests.tl.test_train_subtyper import QUIET, make, placed

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, MissingExtraError, NimbusWarning, WeightsError


def told(record, pattern):
    """Messages of our warnings that match."""
    found = [str(w.message) for w in record if issubclass(w.category, NimbusWarning)]
    return [m for m in found if re.search(pattern, m)]


def stored(tmp_path, **options):
    found = make(2, **options)
    nb.pp.sample_cells(found["gates"], n_cells=60)
    found.write(tmp_path / "object.zarr")
    return read_zarr(tmp_path / "object.zarr")


def test_a_run_does_not_go_on_with_px_of_another_size(tmp_path):
    sdata = make(2)
    nb.pp.sample_cells(sdata["gates"], n_cells=60)
    options = QUIET | {"out": tmp_path}
    nb.tl.train_subtyper(sdata, stop_at=2, **options)
    with (
        pytest.raises(InputError, match=r"other data \(mpp, patch differ\)"),
        pytest.warns(NimbusWarning, match=r"mpp=0\.5, but the scale"),
    ):
        nb.tl.train_subtyper(sdata, mpp=0.5, **options)
    # by so little that patches are as wide
    with pytest.raises(InputError, match=r"other data \(mpp differ\)"):
        nb.tl.train_subtyper(sdata, mpp=0.327, **options)
    assert nb.tl.train_subtyper(sdata, **options).card.training["finished"]


def test_a_run_does_not_go_on_with_other_pixels(tmp_path):
    sdata = stored(tmp_path)
    options = QUIET | {"out": tmp_path / "model"}
    nb.tl.train_subtyper(sdata, stop_at=2, **options)
    files = (tmp_path / "object.zarr" / "images" / "s0_he").rglob("*")
    pixels = next(p for p in files if p.is_file() and p.name not in ("zarr.json", ".zattrs", ".zgroup"))
    pixels.write_bytes(pixels.read_bytes())  # another stamp
    with pytest.raises(InputError, match=r"other data \((train|validation) cells and images differ\)"):
        nb.tl.train_subtyper(read_zarr(tmp_path / "object.zarr"), **options)


@pytest.mark.parametrize("names", [(1, 1.0, "1"), (2.0, "2.0", 2), ("p", "p", "p")])
def test_one_patient_is_one_whatever_the_column_is_made_of(names):
    tables = {}
    for key, name in zip("abc", names, strict=True):
        tables[key] = make(1, of=key)["gates"]
        tables[key].obs["patient"] = name
    tables["c"].obs["patient"] = tables["c"].obs["patient"].astype("category")
    tables["d"] = make(1, of="d")["gates"]
    report = nb.pp.sample_cells(tables, n_cells=40, split=(1, 1, 0))
    assert report["patient"].nunique() == 2
    assert report.groupby("patient")["split"].nunique().max() == 1
    assert report["patient"][0] == str(names[0]).removesuffix(".0")


def test_patients_that_are_no_whole_numbers_keep_their_names():
    tables = {k: make(1, of=k)["gates"] for k in "ab"}
    tables["a"].obs["patient"], tables["b"].obs["patient"] = "007", 1.5
    report = nb.pp.sample_cells(tables, n_cells=40, split=(1, 1, 0))
    assert set(report["patient"]) == {"007", "1.5"}


def test_tables_with_and_without_patients_are_not_mixed():
    objects = {"a": make(1, of="a"), "b": make(1, of="b")}
    del objects["b"]["gates"].obs["patient"]
    message = r"obs\['patient'\] is in the tables of \['a'\] and not of \['b'\]"
    with pytest.raises(InputError, match=message):
        nb.pp.sample_cells({k: v["gates"] for k, v in objects.items()}, n_cells=40, split=(1, 1, 0))
    with pytest.raises(InputError, match=message):
        nb.tl.train_subtyper(objects, n_cells=40, split=(1, 1, 0), **QUIET)


def cut(sdata, name, width):
    """Leave out the right of an H&E."""
    he = sdata[name]
    places = get_transformation(he, get_all=True)
    del sdata.images[name]
    sdata.images[name] = Image2DModel.parse(he.data[:, :, :width], dims="cyx", transformations=places)


def test_cells_beside_the_slide_are_left_out_and_counted():
    sdata = make(2)
    whole, _ = placed(sdata, n_cells=80)
    cut(sdata, "s0_he", 120)
    with pytest.warns(NimbusWarning) as caught:
        part, found = placed(sdata, n_cells=80)
    inside = {k for k, (_, _, c) in whole.items() if k[0] != "s0_cells" or c[1] < 119.5}
    assert set(part) == inside
    assert 0 < len(inside) < len(whole)
    (message,) = told(caught, "left out")
    assert f"{len(whole) - len(inside)} of 80 labelled cells" in message
    assert "s0_cells" in message
    assert "outside their H&E" in message
    assert {len(s) for s in (*found.train.samples, *found.validation.samples)} == {80, 80 + len(inside) - 160}


def test_a_section_without_any_cell_is_left_out():
    sdata = make(4)
    nb.pp.sample_cells(
        sdata["gates"], n_cells=60, split={"p0": "train", "p1": "train", "p2": "validation", "p3": "test"}
    )
    old = sdata["s0_cells"]
    places = get_transformation(old, get_all=True)
    del sdata.labels["s0_cells"]
    sdata.labels["s0_cells"] = Labels2DModel.parse(
        np.zeros(old.shape, np.uint32), dims="yx", transformations=places
    )
    with pytest.warns(NimbusWarning, match="60 of 60 labelled cells of 's0_cells'"):
        model = nb.tl.train_subtyper(sdata, **QUIET)
    assert model.card.training["cells"]["train"]["cells"] == 60


def test_where_all_cells_lie_outside_there_is_nothing_to_train_on():
    sdata = make(2)
    sdata["gates"].obs["instance_id"] += 1_000_000
    with pytest.raises(InputError, match="none of the 120 labelled cells lies on its H&E"):
        nb.tl.train_subtyper(sdata, n_cells=60, **QUIET)


def test_cells_that_come_twice_in_the_table_are_named():
    sdata = make(2)
    obs = sdata["gates"].obs
    obs["instance_id"] = np.where(np.arange(len(obs)) == 1, obs["instance_id"].iloc[0], obs["instance_id"])
    obs["region"] = obs["region"].cat.set_categories(obs["region"].cat.categories)
    obs.iloc[1, obs.columns.get_loc("region")] = obs["region"].iloc[0]
    obs.iloc[1, obs.columns.get_loc("patient")] = obs["patient"].iloc[0]
    first = f"{obs['region'].iloc[0]} {obs['instance_id'].iloc[0]}"
    with pytest.raises(InputError, match=rf"cells come twice in the table.*: {first}; "):
        nb.tl.train_subtyper(sdata, n_cells=60, **QUIET)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "tpu"}, InputError, "device"),
        ({"precision": "half"}, InputError, "precision"),
        ({"n_threads": -1}, InputError, "n_threads=-1 must be a whole number, at least 0"),
        ({"n_threads": 1.5}, InputError, "n_threads=1.5 must be a whole number"),
        ({"backbone": {"kind": "convnext", "depth": [1]}}, InputError, "depth"),
        ({"backbone": {"kind": "convnext", "depths": [1], "hidden_sizes": [8, 16]}}, InputError, "backbone"),
        (
            {"backbone": {"kind": "convnext", "depths": [1] * 4, "hidden_sizes": [4] * 4}, "patch_um": 2.6},
            InputError,
            "patches of 8 px",
        ),
        ({"pretrained": "/nowhere"}, (InputError, WeightsError, MissingExtraError), "nowhere"),
    ],
)
def test_settings_are_refused_before_cells_are_chosen(options, error, message, monkeypatch):
    def chosen(*args, **kwargs):
        pytest.fail("cells were chosen before")

    monkeypatch.setattr("nimbus_sd._sdata.subtype_training.cells_for", chosen)
    with pytest.raises(error, match=message):
        nb.tl.train_subtyper(make(1), **QUIET | options)


def test_no_reader_threads_read_when_asked():
    sdata = make(2)
    alone = nb.tl.train_subtyper(sdata, n_cells=60, n_threads=0, **QUIET)
    assert alone.card.metrics == nb.tl.train_subtyper(sdata, n_cells=60, **QUIET).card.metrics


def test_the_card_says_what_was_asked_for():
    sdata = make(3)
    sdata["gates"].layers["seen"] = sdata["gates"].layers.pop("gated")
    parts = {"p0": "train", "p1": "validation", "p2": "test"}
    model = nb.tl.train_subtyper(
        sdata,
        layer="seen",
        table="gates",
        markers=["CD45"],
        split=parts,
        n_cells=60,
        patch_um=10.4,
        learning_rate=1e-4,
        weight_decay=0.1,
        patience=2,
        batch_size=10,
        **QUIET,
    )
    labels = model.card.training["labels"]
    assert labels["layer"] == "seen"
    assert labels["table"] == "gates"
    assert labels["split"] == parts
    assert (labels["n_cells"], labels["patient"], labels["section"]) == (60, "patient", None)
    assert model.card.training["mpp_of_images"] == [0.325]
    for piece in (
        "layer='seen'",
        "table='gates'",
        "markers=['CD45']",
        "n_cells=60",
        "patch_um=10.4",
        "learning_rate=0.0001",
        "weight_decay=0.1",
        "patience=2",
        "batch_size=10",
    ):
        assert piece in model.card.command, piece


def test_the_card_says_how_cells_had_been_chosen_before():
    sdata = make(2)
    nb.pp.sample_cells(sdata["gates"], n_cells=60, seed=5, split=(1, 1, 0))
    labels = nb.tl.train_subtyper(sdata, table=sdata["gates"], **QUIET).card.training["labels"]
    assert (labels["table"], labels["split"]) == ("a table given to the call", "obs['split']")
    assert labels["n_cells"] == "obs['sampled']"
    assert labels["sample_cells"]["n_cells"] == 60
    assert labels["sample_cells"]["seed"] == 5


def test_cells_that_were_drawn_for_other_labels_are_said_to_be():
    sdata = make(2)
    table = sdata["gates"]
    nb.pp.sample_cells(table, n_cells=60, markers=["CD45"])
    table.layers["other"] = table.layers["gated"].copy()
    pattern = r"obs\['sampled'\] was drawn for layer 'gated' and CD45.*nb.pp.sample_cells.*n_cells="
    with pytest.warns(NimbusWarning, match=pattern):
        placed(sdata, layer="other", markers=["CD45"])
    with pytest.warns(NimbusWarning, match=pattern):
        placed(sdata, markers=["CD3e"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placed(sdata, markers=["CD45"])  # as they were drawn
        placed(sdata, layer="other", markers=["CD45"], n_cells=60)  # drawn anew
    del table.uns["sample_cells"]  # chosen by hand
    placed(sdata, layer="other", markers=["CD3e"])


def test_more_than_four_markers_have_no_room_for_a_quarter_each():
    n = 3000
    kind = np.arange(n) % 12  # six of them positive, for one marker each
    labels = (kind[:, None] == np.arange(6)).astype(np.float32)
    obs = pd.DataFrame({"patient": np.repeat(["a", "b"], n // 2)}, index=np.arange(n).astype(str))
    obs["section"] = obs["patient"]
    table = ad.AnnData(obs=obs, var=pd.DataFrame(index=[f"M{i}" for i in range(6)]), layers={"gated": labels})
    with pytest.warns(NimbusWarning) as caught:
        report = nb.pp.sample_cells(table, n_cells=240, markers=list(table.var_names), split=(1, 1, 0))
    (message,) = told(caught, "quarter")
    assert re.search(r"6 markers.*M0 \(1\d%\)", message)
    assert not told(caught, "too few cells")
    assert (report["missing"] == "").all()


def test_a_table_is_not_converted_again_for_every_section(monkeypatch):
    """A second for each of dozens of sections of a large table otherwise."""
    sdata = make(6)
    nb.pp.sample_cells(sdata["gates"], n_cells=40, split=(3, 3, 0))
    converted, plain = [], pd.Series.astype

    def counted(self, *args, **kwargs):
        converted.append(len(self))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(pd.Series, "astype", counted)
    placed(sdata)
    assert sum(converted) < 5 * sdata["gates"].n_obs
