"""A small tree of the dataset's shape: suffixes, masks named after fields, gold labels in one CSV."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from typer.testing import CliRunner

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd.cli import app
from nimbus_sd.io._read_pan_multiplex import DATASETS, GOLD_FILE
from nimbus_sd.simulation import FieldConfig, panel, simulate_field

CHANNELS = ("CD3", "PanCK")
OME = ("codex_colon", "vectra_pancreas")
SUFFIX = {"vectra_colon": "tif", "mibi_breast": "tiff", "mibi_decidua": "tiff"}


def write_field(folder, dataset, fov, seed):
    field = simulate_field(seed, FieldConfig(shape=(96, 96), mpp=0.5, markers=panel(CHANNELS)))
    if dataset in OME:
        metadata = {"axes": "CYX", "Channel": {"Name": list(CHANNELS)}}
        tifffile.imwrite(folder / "fovs" / f"{fov}.ome.tif", field.image, metadata=metadata)
    else:
        (folder / "fovs" / fov).mkdir()
        for channel, plane in zip(CHANNELS, field.image, strict=True):
            tifffile.imwrite(folder / "fovs" / fov / f"{channel}.{SUFFIX[dataset]}", plane)
    tifffile.imwrite(folder / "masks" / f"{fov}_feature_0.tif", field.labels.astype(np.uint16))
    rows = pd.DataFrame(field.positive, columns=CHANNELS).assign(cell_id=field.instance_ids)
    rows = rows.melt("cell_id", var_name="channel", value_name="activity").fillna(2)
    return rows.assign(dataset=dataset, fov=fov, activity=rows["activity"].astype(int))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pan")
    parts = []
    for i, dataset in enumerate(DATASETS):
        for name in ("fovs", "masks"):
            (root / dataset / name).mkdir(parents=True)
        # one name within another
        fields = enumerate(("fov1", "fov10"))
        parts += [write_field(root / dataset, dataset, fov, 10 * i + k) for k, fov in fields]
    pd.concat(parts).to_csv(root / GOLD_FILE, index=False)
    return root


def test_every_dataset_is_an_object_with_its_gold_table(root):
    found = nb.io.read_pan_multiplex(root)
    assert list(found) == list(DATASETS)
    gold = pd.read_csv(root / GOLD_FILE)
    for name, sdata in found.items():
        assert sorted(sdata.images) == ["fov10_image", "fov1_image"]
        table = sdata["gold"]
        assert (table.obs["platform"].iloc[0], table.obs["tissue"].iloc[0]) == DATASETS[name]
        assert table.obs["dataset"].unique().tolist() == [name]
        rows = gold[gold.dataset == name].sample(20, random_state=0)
        for row in rows.itertuples():
            value = table.to_df("gold").loc[f"{row.fov}_labels_{row.cell_id}", row.channel]
            assert np.isnan(value) if row.activity == 2 else value == row.activity


def test_images_are_read_lazily_and_masks_belong_to_their_field(root):
    sdata = nb.io.read_pan_multiplex(root, datasets=["vectra_colon"])["vectra_colon"]
    assert hasattr(sdata["fov1_image"].data, "dask")
    for fov in ("fov1", "fov10"):
        stored = tifffile.imread(root / "vectra_colon" / "masks" / f"{fov}_feature_0.tif")
        np.testing.assert_array_equal(sdata[f"{fov}_labels"].values, stored)


def copy(root, tmp_path, edit):
    (tmp_path / "mibi_breast").symlink_to(root / "mibi_breast")
    gold = pd.read_csv(root / GOLD_FILE)
    edit(gold[gold.dataset == "mibi_breast"].copy()).to_csv(tmp_path / GOLD_FILE, index=False)
    return tmp_path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda g: g.assign(activity=3), "activity"),
        (lambda g: g[g.channel == "CD3"].assign(channel="CD99"), r"no channels \['CD99'\]"),
        (lambda g: g[g.fov == "fov1"].assign(fov="other"), r"no fields.*other"),
        (lambda g: pd.concat([g, g.head(1)]), "appear twice"),
        (lambda g: g.assign(cell_id=0), "cell_id 0; valid"),
        (lambda g: g.assign(cell_id=g.cell_id.where(g.cell_id > 1)), "cell_id nan; valid"),
        (lambda g: g.assign(cell_id=g.cell_id + 0.5), "whole numbers"),
        (lambda g: g.drop(columns="fov"), r"no column \['fov'\]"),
        (lambda g: g.assign(dataset="codex_colon"), "no rows of dataset 'mibi_breast'"),
    ],
)
def test_what_does_not_fit_is_named(root, tmp_path, edit, message):
    with pytest.raises(InputError, match=message):
        nb.io.read_pan_multiplex(copy(root, tmp_path, edit), datasets=["mibi_breast"])


def test_pixel_size_is_for_all_or_by_dataset(root):
    sizes = {"mibi_breast": 0.39, "codex_colon": np.float32(0.25)}
    found = nb.io.read_pan_multiplex(root, mpp=sizes)
    read = {name: sdata.attrs["nimbus_sd"]["mpp"] for name, sdata in found.items()}
    assert read == dict.fromkeys(DATASETS, 0.5) | sizes
    with pytest.raises(InputError, match=r"mpp names \['mibi'\]"):
        nb.io.read_pan_multiplex(root, mpp={"mibi": 0.39})


def test_missing_datasets_are_said_once_and_unknown_ones_raise(root, tmp_path):
    with pytest.warns(NimbusWarning, match="no codex_colon, mibi_decidua") as said:
        found = nb.io.read_pan_multiplex(copy(root, tmp_path, lambda g: g))
    assert len(said) == 1
    assert list(found) == ["mibi_breast"]
    with pytest.raises(InputError, match="give a list of codex_colon"):
        nb.io.read_pan_multiplex(root, datasets=["imc"])
    with pytest.raises(InputError, match="a mapping from codex_colon"):
        nb.io.read_pan_multiplex(root, mpp={"mibi_brest": 0.5})
    with pytest.raises(InputError, match="not found"):
        nb.io.read_pan_multiplex(tmp_path / "nowhere")


def test_the_benchmark_prints_the_papers_table(root, tmp_path):
    arguments = ["benchmark", "pan-multiplex", str(root), "--no-progress", "--out", str(tmp_path / "m.csv")]
    result = CliRunner().invoke(app, [*arguments, "--precision", "float32"])
    assert result.exit_code == 0, result.output
    for words in ("per dataset", "per tissue", "per marker", "average of the datasets", "in hand"):
        assert words in result.output
    frame = pd.read_csv(tmp_path / "m.csv")
    assert len(frame) == 5 * 2 * 2 * 3  # datasets, markers, fields, kinds of score
    mine = frame[frame.scores == "nimbus-sd-s"]
    expected = mine.groupby("dataset").f1.mean().mean()
    line = result.output.split("average of the datasets")[1].strip().splitlines()[1]
    assert f"{expected:.3f}"[1:] in line


def test_the_benchmark_as_json_and_what_it_would_do(root, tmp_path):
    one = copy(root, tmp_path, lambda g: g)
    call = [
        "benchmark",
        "pan-multiplex",
        str(one),
        "--no-progress",
        "--out",
        str(tmp_path / "m.csv"),
        "--json",
    ]
    with pytest.warns(NimbusWarning, match="no codex_colon"):
        plan = json.loads(CliRunner().invoke(app, [*call, "--dry-run"]).stdout)
    assert not (tmp_path / "m.csv").exists()
    (told,) = plan["datasets"]
    assert (told["dataset"], told["n_fields"], told["n_markers"]) == ("mibi_breast", 2, 2)
    with pytest.warns(NimbusWarning, match="no codex_colon"):
        done = json.loads(CliRunner().invoke(app, call).stdout)
    frame = pd.read_csv(tmp_path / "m.csv")
    assert {row["scores"] for row in done["averages"]["all"]} == set(frame.scores)
    assert done["threshold_integrated"] > 0
