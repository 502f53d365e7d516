"""Training of sub-typing networks from objects: what comes out, whom it learns from, what is refused."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, TableModel
from spatialdata.transformations import Identity, Scale, set_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning, WeightsError
from nimbus_sd._core.stain import combine
from nimbus_sd._sdata import subtype_cells, subtype_training
from nimbus_sd._sdata.cell_request import CellRequest
from nimbus_sd.engine.embedding import supply
from nimbus_sd.engine.subtyping.inputs import prepare
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.models.subtyper import SubtypeCard, SubtypeModel, load_subtyper

MARKERS = ("CD45", "CD3e")
TINY = replace(
    SubtypeTrainConfig.small(),
    name="tiny",
    backbone={"kind": "hovernet", "width": 2, "units": [1, 1, 1, 1]},
    hidden=8,
    patch=24,
    epochs=2,
    batch=16,
)
QUIET = {"device": "cpu", "progress": False, "config": TINY}
STEP = 14  # px between cells


def section(seed=0, *, shape=(220, 180), mpp=0.325, channels=("r", "g", "b")):
    """H&E ``(3, y, x)``, centres (y, x) and labels: CD45 is dark, CD3e is small as well."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[STEP : shape[0] - STEP : STEP, STEP : shape[1] - STEP : STEP]
    centers = np.column_stack([y.ravel(), x.ravel()]) + rng.integers(-1, 2, (y.size, 2))
    cd45 = rng.random(len(centers)) < 0.4
    cd3e = cd45 & (rng.random(len(centers)) < 0.5)
    hed = np.zeros((*shape, 3))
    hed[..., 1] = 0.015 + rng.uniform(0, 0.004, shape)
    hed[..., 0] = 0.004
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    for (cy, cx), dark, small in zip(centers, cd45, cd3e, strict=True):
        inside = (yy - cy) ** 2 + (xx - cx) ** 2 < (2.5 if small else 4.5) ** 2
        hed[inside, 0] = 0.1 if dark else 0.04
    rgb = np.ascontiguousarray(combine(hed).transpose(2, 0, 1))
    return rgb, centers, np.column_stack([cd45, cd3e]).astype(np.float32)


def make(n=3, *, of="", names=None, mpp=0.325, in_points=False, shape=(220, 180)):
    """Sections of one patient each in one object, the table's rows in no order."""
    images, labels, points, frames, values = {}, {}, {}, [], []
    for i in range(n):
        name = f"{of}s{i}"
        rgb, centers, truth = section(seed=i + 10 * len(of), shape=shape)
        to = {name: Identity(), "microns": Scale([mpp, mpp], axes=("x", "y"))}
        images[f"{name}_he"] = Image2DModel.parse(
            rgb,
            dims="cyx",
            c_coords=list(names or ("r", "g", "b")),
            transformations=dict(to),
            chunks=(3, 64, 64),
        )
        other = np.random.default_rng(i).integers(0, 900, (4, *shape)).astype("uint16")
        images[f"{name}_if"] = Image2DModel.parse(other, dims="cyx", transformations=dict(to))
        ids = np.random.default_rng(i).permutation(10 * len(centers))[: len(centers)] + 1
        if in_points:
            ids = np.sort(ids)
            element = PointsModel.parse(
                pd.DataFrame({"x": centers[:, 1] + 0.5, "y": centers[:, 0] + 0.5}, index=ids)
            )
            set_transformation(element, dict(to), set_all=True)
            points[f"{name}_cells"] = element
        else:
            seg = np.zeros(shape, np.uint32)
            for k, (cy, cx) in zip(ids, centers, strict=True):
                seg[cy - 1 : cy + 2, cx - 1 : cx + 2] = k
            labels[f"{name}_cells"] = Labels2DModel.parse(seg, dims="yx", transformations=dict(to))
        frames.append(pd.DataFrame({"region": f"{name}_cells", "instance_id": ids, "patient": f"{of}p{i}"}))
        values.append(truth)
    obs = pd.concat(frames, ignore_index=True)
    gated = np.concatenate(values)
    order = np.random.default_rng(99).permutation(len(obs))
    obs, gated = obs.iloc[order].reset_index(drop=True), gated[order]
    obs.index = [f"c{i}" for i in range(len(obs))]
    obs["region"] = obs["region"].astype("category")
    table = AnnData(obs=obs, var=pd.DataFrame(index=list(MARKERS)), layers={"gated": gated})
    table = TableModel.parse(
        table, region=sorted(set(obs["region"])), region_key="region", instance_key="instance_id"
    )
    return SpatialData(images=images, labels=labels, points=points, tables={"gates": table})


@pytest.fixture(scope="module")
def sdata():
    """Three sections of three patients, some 400 cells; chosen cells are in the table; not to be changed."""
    found = make()
    nb.pp.sample_cells(found["gates"], n_cells=60, split=(1, 1, 1))
    return found


def assert_same(a, b):
    for name, value in a.net.state_dict().items():
        torch.testing.assert_close(b.net.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_the_model_knows_how_it_was_made(sdata, tmp_path, unchanged):
    with unchanged(sdata):
        model = nb.tl.train_subtyper(sdata, out=tmp_path / "mine", **QUIET)
    assert isinstance(model, SubtypeModel)
    card = SubtypeCard.read(tmp_path / "mine")
    assert card == model.card
    assert_same(model, load_subtyper(tmp_path / "mine"))
    assert (card.name, card.markers, card.patch, card.mpp) == ("tiny", MARKERS, 24, 0.325)
    assert card.thresholds == {"CD45": 0.5, "CD3e": 0.5}
    assert card.hierarchy == {"CD3e": "CD45"}, "the usual one: labels were not curated"
    obs = sdata["gates"].obs
    for part in ("train", "validation", "test"):
        mine = obs[obs["split"] == part]
        assert card.training["patients"][part] == sorted(mine["patient"].unique())
        if part != "test":
            rows = obs["sampled"] & (obs["split"] == part)
            gated = sdata["gates"].layers["gated"][rows]
            counts = card.training["cells"][part]
            assert counts["cells"] == rows.sum() == 60
            assert counts["CD3e"] == {
                "positive": (gated[:, 1] == 1).sum(),
                "negative": (gated[:, 1] == 0).sum(),
            }
    assert card.training["pretrained"] == "random"
    assert card.training["validation"] == "other patients"
    assert card.training["finished"] is True
    assert (
        SubtypeTrainConfig.from_dict({k: card.training[k] for k in TINY.to_dict()} | {"pretrained": False})
        == TINY
    )
    figures = card.metrics["validation"]
    assert set(figures) == {"loss", "auroc", "balanced_accuracy", "step", *MARKERS}
    assert "config=<tiny>" in card.command
    assert "epochs=2, seed=0" in card.command
    assert {p.name for p in (tmp_path / "mine" / "run").iterdir()} >= {"last.pt", "config.json", "log.csv"}
    assert nb.tl.train_subtyper(sdata, **QUIET).path is None, "nothing is written without out="


def test_it_learns_what_the_stains_show(sdata):
    backbone = {"kind": "hovernet", "width": 4, "units": [1, 1, 1, 1]}
    config = replace(TINY, backbone=backbone, epochs=25, batch=20, learning_rate=1e-2)
    model = nb.tl.train_subtyper(sdata, **QUIET | {"config": config})
    figures = model.card.metrics["validation"]
    assert figures["CD45"]["auroc"] > 0.95
    assert figures["CD3e"]["auroc"] > 0.8


def placed(sdata, **options):
    """Cells as they are resolved: (region, id) to part and labels."""
    request = subtype_cells.CellRequest(
        **{
            "image": None,
            "table": None,
            "layer": "gated",
            "markers": None,
            "patient": "patient",
            "section": None,
            "split": None,
            "n_cells": None,
            "mpp": None,
            "coordinate_system": None,
            "seed": 0,
        }
        | options
    )
    objects = sdata if isinstance(sdata, dict) else {"": sdata}
    found = subtype_cells.cells_for(objects, request, patch=24, mpp=0.325)
    out = {}
    for part in ("train", "validation"):
        mine = getattr(found, part)
        keys = [(s.region, int(i)) for s in mine.samples for i in s.ids]
        where = np.concatenate([s.centers for s in mine.samples])
        assert len(keys) == len(mine.targets)
        out |= {k: (part, t.tolist(), c) for k, t, c in zip(keys, mine.targets, where, strict=True)}
    return out, found


@pytest.mark.parametrize("in_points", [False, True])
def test_labels_follow_region_and_id_never_the_order(in_points):
    sdata = make(in_points=in_points)
    table = sdata["gates"]
    nb.pp.sample_cells(table, n_cells=40, split=(1, 1, 1))
    out, _ = placed(sdata)
    seen = 0
    for row, gated in zip(table.obs.itertuples(), table.layers["gated"], strict=True):
        key = (row.region, row.instance_id)
        assert (key in out) == (row.sampled and row.split != "test")
        if key in out:
            part, labels, center = out[key]
            assert (part, labels) == (row.split, gated.tolist())
            he = np.asarray(sdata[f"{row.region[:-6]}_he"])[:, *np.rint(center).astype(int)]
            assert (he.sum() < 400) == (gated[0] == 1), "the middle of the patch is this cell's nucleus"
            seen += 1
    assert seen == 80


def test_one_patient_is_divided_by_place_and_the_figures_are_said_to_be_good():
    one = make(1, shape=(320, 320))
    with pytest.warns(NimbusWarning, match="all cells are of one patient: validation is another place"):
        out, found = placed(one, n_cells=60)
    assert found.by_place
    train, judged = (
        np.floor(np.array([c for p, _, c in out.values() if p == part]) + 0.5)
        for part in ("train", "validation")
    )
    assert np.abs(train[:, None] - judged[None]).max(axis=2).min() >= 24
    with pytest.warns(NimbusWarning, match="all cells are of one patient"):
        model = nb.tl.train_subtyper(one, n_cells=120, **QUIET)
    assert model.card.training["validation"] == "another place of the same patient"


def test_two_patients_train_and_judge_and_without_names_each_section_is_one():
    two = make(2)
    del two["gates"].obs["patient"]
    _, found = placed(two, n_cells=60)
    assert sorted(map(len, found.patients.values())) == [0, 1, 1]
    assert found.patients["test"] == []
    assert found.report["n_sampled"].tolist() == [60, 60]


def test_a_split_that_is_given_wins_and_leaks_are_found(sdata):
    parts = {"p0": "validation", "p1": "train", "p2": "test"}
    out, found = placed(sdata, split=parts, n_cells=40)
    assert found.patients == {"train": ["p1"], "validation": ["p0"], "test": ["p2"]}
    assert {r for r, _ in out} == {"s0_cells", "s1_cells"}
    leaking = make(2)
    nb.pp.sample_cells(leaking["gates"], n_cells=40)
    leaking["gates"].obs["patient"] = "the same"
    with pytest.raises(
        InputError, match=r"patients in several parts: \{'the same': \['train', 'validation'\]\}"
    ):
        nb.tl.train_subtyper(leaking, **QUIET)


def test_badly_registered_cells_are_not_learnt():
    sdata = make(2)
    nb.pp.sample_cells(sdata["gates"], n_cells=60)
    sdata["gates"].obs["registered"] = np.arange(sdata["gates"].n_obs) % 2 == 0  # found out afterwards
    out, _ = placed(sdata)
    kept = sdata["gates"].obs[lambda o: o["sampled"] & o["registered"]]
    assert set(out) == set(zip(kept["region"], kept["instance_id"], strict=True))


def test_an_interrupted_training_goes_on_with_the_same_bits(sdata, tmp_path):
    whole = nb.tl.train_subtyper(sdata, out=tmp_path / "whole", **QUIET)
    part = nb.tl.train_subtyper(sdata, out=tmp_path / "parts", stop_at=4, **QUIET)
    assert part.card.training["finished"] is False
    parts = nb.tl.train_subtyper(sdata, out=tmp_path / "parts", **QUIET)
    assert parts.card.sha256 == whole.card.sha256
    assert parts.card.metrics == whole.card.metrics


def test_patches_from_memory_images_and_a_store_train_alike(sdata, tmp_path):
    written = make()
    nb.pp.sample_cells(written["gates"], n_cells=60, split=(1, 1, 1))
    written.write(tmp_path / "object.zarr")
    stored = read_zarr(tmp_path / "object.zarr")
    assert_same(nb.tl.train_subtyper(sdata, **QUIET), nb.tl.train_subtyper(stored, **QUIET))
    options = QUIET | {"cache": 0}
    whole = nb.tl.train_subtyper(stored, out=tmp_path / "whole", **options)
    nb.tl.train_subtyper(stored, out=tmp_path / "parts", stop_at=5, **options)
    parts = nb.tl.train_subtyper(stored, out=tmp_path / "parts", **options)
    assert parts.card.sha256 == whole.card.sha256
    with pytest.raises(InputError, match=r"other data \(order differ\)"):
        nb.tl.train_subtyper(stored, out=tmp_path / "parts", **QUIET)
    first = nb.tl.train_subtyper(stored, store=tmp_path / "patches", **options)
    assert {p.name for p in (tmp_path / "patches").iterdir()} == {"train.zarr", "validation.zarr"}
    assert_same(first, nb.tl.train_subtyper(stored, store=tmp_path / "patches", **options))
    # few cells in one chunk of the store are shuffled as those of the images
    assert first.card.metrics["validation"]["loss"] == pytest.approx(
        whole.card.metrics["validation"]["loss"], rel=0.5
    )
    with pytest.raises(InputError, match=r"store=: image .* lies in memory.* leave store= out"):
        nb.tl.train_subtyper(sdata, store=tmp_path / "other", **options)


def test_each_way_to_patches_gives_each_cell_its_own_labels(tmp_path):
    """The row numbers that come with patches are those of the targets, whatever the order."""
    sdata = make(3)
    nb.pp.sample_cells(sdata["gates"], n_cells=60)
    sdata.write(tmp_path / "object.zarr")
    _, found = placed(read_zarr(tmp_path / "object.zarr"))
    for cache, store in ((1 << 30, None), (0, None), (0, tmp_path / "patches")):
        plan = subtype_training.PatchPlan(cache, store, 2, False)
        data = subtype_training.gather(found, replace(TINY, batch=10), plan)
        rows = []
        for some, raw in data.supply.numbered(0, 6):
            rows += some.tolist()
            dark = raw[:, :, 12, 12].astype(int).sum(axis=1) < 400
            np.testing.assert_array_equal(dark, data.targets[some, 0] == 1)
        assert sorted(rows) == list(range(60))
        judged = list(data.validation.patches.numbered(25))
        assert sorted(i for some, _ in judged for i in some.tolist()) == list(
            range(len(data.validation.targets))
        )
        for some, raw in judged:
            dark = raw[:, :, 12, 12].astype(int).sum(axis=1) < 400
            np.testing.assert_array_equal(dark, data.validation.targets[some, 0] == 1)


def test_both_trainers_give_the_same_model(sdata, tmp_path):
    pytest.importorskip("lightning")
    plain = nb.tl.train_subtyper(sdata, out=tmp_path / "a", **QUIET)
    other = nb.tl.train_subtyper(sdata, out=tmp_path / "b", trainer="lightning", **QUIET)
    assert plain.card.sha256 == other.card.sha256


def test_a_cohort_whose_files_call_colours_differently():
    objects = {"a": make(1, of="a"), "b": make(1, of="b", names=("0", "1", "2"))}
    model = nb.tl.train_subtyper(objects, n_cells=60, markers=["CD3e"], **QUIET)
    assert model.markers == ("CD3e",)
    assert model.card.hierarchy == {}
    assert sorted(map(len, model.card.training["patients"].values())) == [0, 1, 1]
    images = {"as0_cells": "as0_he", "bs0_cells": "bs0_he"}
    tables = {k: v["gates"] for k, v in objects.items()}
    assert_same(
        model, nb.tl.train_subtyper(objects, n_cells=60, markers="CD3e", image=images, table=tables, **QUIET)
    )
    with pytest.raises(InputError, match="table=AnnData goes with a single object"):
        nb.tl.train_subtyper(objects, table=tables["a"], **QUIET)
    with pytest.raises(InputError, match="table= has no table for object 'b'"):
        nb.tl.train_subtyper(objects, table={"a": tables["a"]}, **QUIET)


def test_other_pixel_sizes_show_the_network_as_much_tissue():
    coarse = make(2, mpp=0.65)
    out = nb.tl.train_subtyper(coarse, n_cells=60, **QUIET)
    assert (out.card.mpp, out.card.patch) == (0.325, 24)
    _, found = placed(coarse, n_cells=60)
    plan = subtype_training.PatchPlan(1 << 30, None, 1, False)
    assert subtype_training.gather(found, TINY, plan).supply.patches.shape[1:] == (3, 12, 12)
    wider = nb.tl.train_subtyper(coarse, n_cells=60, patch_um=10.4, **QUIET)
    assert wider.card.patch == 32


def test_images_of_different_pixel_sizes_are_trained_on_together(tmp_path):
    objects = {"a": make(2, of="a"), "b": make(2, of="b", mpp=0.65)}
    parts = {"ap0": "train", "ap1": "validation", "bp0": "train", "bp1": "validation"}
    _, found = placed(objects, n_cells=60, split=parts)
    for cache in (1 << 30, 0):
        data = subtype_training.gather(
            found, replace(TINY, batch=20), subtype_training.PatchPlan(cache, None, 2, False)
        )
        seen = {}
        for some, raw in data.supply.numbered(0, 6):
            seen |= dict(zip(some.tolist(), raw, strict=True))
        assert len(seen) == 120
        row = 0
        for sample in found.train.samples:
            size = {0.325: 24, 0.65: 12}[round(sample.mpp, 3)]
            native = supply.load_patches([sample], sample.image.channels, size)
            slow = np.rint(255 * prepare(torch.from_numpy(native), 24).numpy()).astype(np.uint8)
            for patch in slow:
                np.testing.assert_array_equal(seen[row], patch)
                row += 1
    model = nb.tl.train_subtyper(objects, n_cells=60, split=parts, **QUIET)
    assert model.card.patch == 24
    with pytest.raises(InputError, match=r"different sides \(12 px on b/bs1_cells, 24 px on a/as1_cells\)"):
        nb.tl.train_subtyper(objects, n_cells=60, split=parts, store=tmp_path / "s", cache=0, **QUIET)


def test_a_marker_without_a_class_in_validation_is_none_with_the_reason(sdata):
    lacking = make(2)
    parts = {"p0": "train", "p1": "validation"}
    mine = (lacking["gates"].obs["patient"] == "p1").to_numpy()
    lacking["gates"].layers["gated"][mine, 1] = 0
    with pytest.warns(NimbusWarning) as caught:
        model = nb.tl.train_subtyper(lacking, split=parts, n_cells=60, **QUIET)
    told = [str(w.message) for w in caught if issubclass(w.category, NimbusWarning)]
    assert sum("CD3e: no positive cell to validate with" in t for t in told) == 1
    figures = model.card.metrics["validation"]
    assert figures["CD3e"] == {
        "auroc": None,
        "balanced_accuracy": None,
        "reason": "no positive cell to validate with",
    }
    assert figures["auroc"] == figures["CD45"]["auroc"]
    json.dumps(model.card.metrics, allow_nan=False)
    lacking["gates"].layers["gated"][mine, 0] = 1
    lacking["gates"].obs["split"] = np.where(mine, "validation", "train")
    lacking["gates"].obs["sampled"] = True
    with pytest.raises(InputError, match="no marker can be validated"):
        nb.tl.train_subtyper(lacking, **QUIET)


def test_bad_input_is_refused_before_anything_is_written(sdata, tmp_path, unchanged):
    def refused(message, error=InputError, source=sdata, **options):
        with unchanged(source), pytest.raises(error, match=message):
            nb.tl.train_subtyper(source, out=tmp_path / "x", **QUIET | options)
        assert not (tmp_path / "x").exists()

    refused("config='huge' is no preset; valid: finetune, paper, small", config="huge")
    refused("trainer='keras'; valid: plain, lightning", trainer="keras")
    refused("backbone='resnet' is unknown; valid: convnext", backbone="resnet")
    refused(
        "has 4 channels of uint16; an H&E has 3",
        image=dict.fromkeys([f"s{i}_cells" for i in range(3)], "s0_if"),
    )
    refused("image= names no H&E for 's", image={"s9_cells": "s0_he"})
    refused("no image 'he'", ElementNotFoundError, image="he")
    refused("no table 'cells'", ElementNotFoundError, table="cells")
    refused("no layer 'truth'", ElementNotFoundError, table="gates", layer="truth")
    refused(
        r"layer='truth': no table has it; pass table=. Tables: 'gates'", ElementNotFoundError, layer="truth"
    )
    refused(r"no marker \['CD4'\]", ElementNotFoundError, markers=["CD45", "CD4"])
    refused("cache=-1 must be a number of bytes", cache=-1)
    refused("patch_um=0 must be a positive number", patch_um=0)
    refused("too small for patches of 1000 px", patch_um=325)
    refused("60 cells to train on, fewer than the 64 x 1 of a step", batch_size=64)
    refused("stop_at=0 must be at least 1", stop_at=0)
    refused("device='cuda:9'", device="cuda:9")
    refused(
        "no cell for validation .*give a patient",
        split={"p0": "train", "p1": "train", "p2": "test"},
        n_cells=40,
    )
    rare = make(2)
    labels = rare["gates"].layers["gated"]
    labels[np.flatnonzero(labels[:, 1] == 1)[5:], 1] = 0
    with pytest.warns(NimbusWarning, match="too few cells"):
        refused(
            r"too few cells to train on for CD3e \(\d positive, \d+ negative\) in sections s",
            source=rare,
            n_cells=60,
        )
    unknown = make(2)
    for name in unknown.images:
        set_transformation(unknown[name], {name[:2]: Identity()}, set_all=True)
    refused("how large is a px", source=unknown, n_cells=60)
    apart = make(2)
    set_transformation(apart["s0_he"], {"elsewhere": Identity()}, set_all=True)
    refused("s0_cells.*no image overlaps", source=apart, n_cells=60)


def test_another_model_in_the_folder_is_not_overwritten(sdata, tmp_path):
    model = nb.tl.train_subtyper(sdata, out=tmp_path, **QUIET)
    with pytest.raises(InputError, match=r"another configuration \(seed differ\)"):
        nb.tl.train_subtyper(sdata, out=tmp_path, seed=1, **QUIET)
    changed = make()
    nb.pp.sample_cells(changed["gates"], n_cells=60, split=(1, 1, 1))
    flipped = changed["gates"].layers["gated"]
    flipped[:, 1] = 1 - flipped[:, 1]
    with pytest.raises(InputError, match=r"other data \(train labels, validation labels differ\)"):
        nb.tl.train_subtyper(changed, out=tmp_path, **QUIET)
    (tmp_path / "run" / "last.pt").unlink()
    with pytest.raises(InputError, match="holds a model of another run"):
        nb.tl.train_subtyper(sdata, out=tmp_path, **QUIET)
    assert json.loads((tmp_path / "subtyper.json").read_text())["sha256"] == model.card.sha256


def test_what_the_call_changes(sdata):
    changed = nb.tl.train_subtyper(
        sdata,
        backbone={"kind": "hovernet", "width": 3, "units": [1, 1, 1, 1]},
        multitask=False,
        weighted=False,
        epochs=1,
        batch_size=10,
        accumulation=2,
        learning_rate=1e-4,
        weight_decay=0.1,
        patience=1,
        seed=3,
        **QUIET,
    )
    told = SimpleNamespace(**changed.card.training)
    assert (told.multitask, told.weighted, told.epochs, told.batch) == (False, False, 1, 10)
    assert (told.accumulation, told.learning_rate, told.weight_decay, told.patience) == (2, 1e-4, 0.1, 1)
    assert (told.seed, told.step) == (3, 3)
    assert len(changed.net.backbones) == 2
    with pytest.warns(
        NimbusWarning, match="60 cells to train on are fewer than a step of 32 x 16 patches: it is"
    ):
        small = nb.tl.train_subtyper(sdata, **QUIET | {"config": replace(TINY, batch=32, accumulation=16)})
    assert (small.card.training["batch"], small.card.training["accumulation"]) == (32, 1)


def test_rows_of_cells_that_are_not_there_are_counted():
    sdata = make(2)
    sdata["gates"].obs["instance_id"] += np.where(np.arange(sdata["gates"].n_obs) % 10 == 0, 1_000_000, 0)
    with pytest.warns(NimbusWarning, match=r"\d+ of 60 labelled cells of 's\d_.* are not there.*another"):
        nb.tl.train_subtyper(sdata, n_cells=60, **QUIET)


def test_one_image_takes_the_cells_on_it_as_prediction_does(caplog):
    one = make(2, shape=(320, 320))
    with pytest.warns(NimbusWarning, match="all cells are of one patient"):
        model = nb.tl.train_subtyper(one, image="s0_he", n_cells=120, **QUIET)
    assert model.card.training["patients"] == {"train": ["p0"], "validation": [], "test": []}
    assert "not on it: ['s1_cells']" in caplog.text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NimbusWarning)  # what it has learnt in an epoch
        nb.tl.predict_subtypes(one, image="s0_he", model=model, progress=False, device="cpu")
    assert one["subtypes"].obs["region"].unique().tolist() == ["s0_cells"]
    set_transformation(one["s1_he"], {"elsewhere": Identity()}, set_all=True)
    for image, error in (("he", ElementNotFoundError), ("s0_if", InputError), ("s1_he", InputError)):
        messages = []
        with pytest.raises(error) as caught:
            nb.tl.train_subtyper(one, image=image, n_cells=120, **QUIET)
        messages.append(str(caught.value))
        with pytest.raises(error) as caught:
            nb.tl.predict_subtypes(one, image=image, model=model, table="x", progress=False)
        messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_what_needs_no_data_is_refused_before_any_is_looked_at(sdata, tmp_path, monkeypatch):
    nb.tl.train_subtyper(sdata, out=tmp_path / "mine", **QUIET)
    wrong = tmp_path / "wrong.pt"
    torch.save({"a": torch.zeros(3)}, wrong)
    (tmp_path / "file").write_text("x")

    def looked_at(*_, **__):
        pytest.fail("cells were looked at")

    monkeypatch.setattr(subtype_training, "cells_for", looked_at)
    for error, message, options in [
        (InputError, "backbone='resnet' is unknown", {"backbone": "resnet", "out": None}),
        (InputError, "hovernet", {"backbone": {"kind": "hovernet", "deep": 3}, "out": None}),
        (InputError, r"another configuration \(learning_rate differ\)", {"learning_rate": 1e-4}),
        (InputError, r"another configuration \(batch differ\)", {"batch_size": 20}),
        (InputError, "is a file; give a folder", {"out": tmp_path / "file"}),
        (WeightsError, "nowhere", {"pretrained": tmp_path / "nowhere.pt", "out": None}),
        (WeightsError, "wrong.pt", {"pretrained": wrong, "out": None}),
        (WeightsError, "no weights on the hub", {"pretrained": True, "out": None}),
    ]:
        with pytest.raises(error, match=message):
            nb.tl.train_subtyper(sdata, **QUIET | {"out": tmp_path / "mine"} | options)
    monkeypatch.undo()
    monkeypatch.setattr(subtype_training, "gather", looked_at)
    changed = make()
    nb.pp.sample_cells(changed["gates"], n_cells=60, split=(1, 1, 1), seed=5)
    with pytest.raises(InputError, match=r"other data \(train"):
        nb.tl.train_subtyper(changed, out=tmp_path / "mine", **QUIET)


def test_markers_without_labels_are_not_learnt():
    sdata = make(2)
    table, labels = sdata["gates"], sdata["gates"].layers["gated"]
    sdata["gates"] = AnnData(
        obs=table.obs,
        var=pd.DataFrame(index=["CD45", "CD3e", "CD4"]),
        layers={"gated": np.column_stack([labels[:, 0], np.full(len(labels), np.nan), labels[:, 1]])},
        uns=table.uns,
    )
    model = nb.tl.train_subtyper(sdata, n_cells=60, **QUIET)
    assert model.markers == ("CD45", "CD4")
    assert model.card.hierarchy == {"CD4": "CD45"}
    with pytest.raises(InputError, match="CD3e: no cell has a label in layer 'gated'"):
        nb.tl.train_subtyper(sdata, n_cells=60, markers=["CD45", "CD3e"], **QUIET)


def test_the_model_gets_the_hierarchy_that_labels_were_curated_by():
    objects = {of: make(2, of=of) for of in "ab"}
    nb.pp.curate_hierarchy(objects["a"]["gates"], {"CD45": "CD3e"})
    request = CellRequest(None, None, "gated", None, "patient", None, (1, 1, 0), 20, None, None, 0)
    found = subtype_cells.cells_for(objects, request, patch=24, mpp=0.325)
    assert found.hierarchy == {"CD45": "CD3e"}
    nb.pp.curate_hierarchy(objects["b"]["gates"])
    with pytest.warns(NimbusWarning, match=r"curated by different hierarchies.*\(none\)"):
        assert subtype_cells.cells_for(objects, request, patch=24, mpp=0.325).hierarchy == {}
