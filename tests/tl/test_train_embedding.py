"""Training of embeddings from objects: what comes out, how it goes on, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from spatialdata.models import PointsModel, TableModel
from spatialdata.transformations import Identity, set_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ChannelNotFoundError, ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.models.embedding import EmbeddingCard, EmbeddingModel, load_embedding

CHANNELS = ["CD3", "PanCK", "CD20", "VIM"]
TINY = replace(
    EmbeddingTrainConfig.small(),
    name="tiny",
    architecture={"kind": "cim", "width": 2, "embedding": 16},
    crops=(16, 14),
    crop=0,
    epochs=2,
    batch=16,
    optimiser="adamw",
    learning_rate=2e-3,
    reference_views=512,
    every=5,
    projection=(16, 8),
)
QUIET = {"device": "cpu", "progress": False, "config": TINY}


def tissue(shape=(160, 160), n_fovs=2, seed=0):
    return nb.datasets.simulated_tissue(n_fovs=n_fovs, shape=shape, channels=CHANNELS, seed=seed)


@pytest.fixture(scope="module")
def sdata():
    """Two fields, some 200 cells; not to be changed."""
    return tissue()


def assert_same(a, b):
    for name, value in a.net.state_dict().items():
        torch.testing.assert_close(b.net.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_the_model_knows_how_it_was_made(sdata, tmp_path, unchanged):
    with unchanged(sdata):
        model = nb.tl.train_embedding(sdata, out=tmp_path / "mine", **QUIET)
    assert isinstance(model, EmbeddingModel)
    card = EmbeddingCard.read(tmp_path / "mine")
    assert card == model.card
    again = load_embedding(tmp_path / "mine")
    assert_same(model, again)
    assert (card.name, card.markers, card.size, card.crop) == ("tiny", tuple(CHANNELS), 32, 16)
    assert (card.mpp, card.quantile, card.transform) == (0.5, 0.9999, TINY.transform)
    n = sum(len(np.unique(nb_labels)) - 1 for nb_labels in map(np.asarray, sdata.labels.values()))
    assert card.metrics["probe_cells"] == n // 10
    assert card.training_data.startswith(f"{n - n // 10} cells of 2 elements (fov0_labels, fov1_labels)")
    assert card.training["step"] == 2 * ((n - n // 10) // 16)
    assert card.training["finished"] is True
    assert EmbeddingTrainConfig.from_dict({k: card.training[k] for k in TINY.to_dict()}) == TINY
    assert "epochs=2, batch_size=16, seed=0" in card.command
    for marker in CHANNELS:
        pixels = np.concatenate([np.asarray(i.sel(c=marker)).ravel() for i in sdata.images.values()])
        assert card.scale[marker] == pytest.approx(np.quantile(pixels, 0.9999), rel=0.05)
    assert {p.name for p in (tmp_path / "mine" / "run").iterdir()} >= {"last.pt", "config.json", "log.csv"}


def test_it_learns_types_that_it_is_not_told(tmp_path):
    sdata = tissue((320, 320), n_fovs=1)
    config = replace(TINY, epochs=12, batch=32, learning_rate=5e-3, reference_views=128)
    model = nb.tl.train_embedding(sdata, **QUIET | {"config": config}, probe="cell_type", out=tmp_path)
    rows = pd.read_csv(tmp_path / "run" / "log.csv")
    assert rows["loss"].iloc[-1] < 0.9 * rows["loss"].iloc[0]
    assert model.card.metrics["probe_is"] == "balanced accuracy of k-NN"
    n_types = sdata["truth"].obs["cell_type"].nunique()
    assert model.card.metrics["probe"] > 2 / n_types


def test_an_interrupted_training_goes_on_with_the_same_bits(sdata, tmp_path):
    whole = nb.tl.train_embedding(sdata, out=tmp_path / "whole", **QUIET)
    part = nb.tl.train_embedding(sdata, out=tmp_path / "parts", stop_at=7, **QUIET)
    assert part.card.training["finished"] is False
    parts = nb.tl.train_embedding(sdata, out=tmp_path / "parts", **QUIET)
    assert parts.card.sha256 == whole.card.sha256
    assert parts.card.metrics == whole.card.metrics
    assert nb.tl.train_embedding(sdata, **QUIET).path is None, "nothing is written without out="


def test_streamed_patches_train_as_well_and_resume(sdata, tmp_path):
    options = QUIET | {"cache": 0}
    memory = nb.tl.train_embedding(sdata, **QUIET)
    whole = nb.tl.train_embedding(sdata, out=tmp_path / "whole", **options)
    nb.tl.train_embedding(sdata, out=tmp_path / "parts", stop_at=9, **options)
    parts = nb.tl.train_embedding(sdata, out=tmp_path / "parts", **options)
    assert parts.card.sha256 == whole.card.sha256
    assert whole.card.metrics["loss"] == pytest.approx(memory.card.metrics["loss"], rel=0.3)
    with pytest.raises(InputError, match=r"other data \(order differ\)"):
        nb.tl.train_embedding(sdata, out=tmp_path / "parts", **QUIET)


def test_both_trainers_give_the_same_model(sdata, tmp_path):
    pytest.importorskip("lightning")
    plain = nb.tl.train_embedding(sdata, out=tmp_path / "a", **QUIET)
    other = nb.tl.train_embedding(sdata, out=tmp_path / "b", trainer="lightning", **QUIET)
    assert plain.card.sha256 == other.card.sha256


def test_points_a_cohort_and_what_the_call_changes(sdata, tmp_path):
    second = tissue((120, 120), n_fovs=1, seed=3)
    rng = np.random.default_rng(0)
    second["nuclei"] = PointsModel.parse(rng.uniform(1, 119, (70, 2)))
    set_transformation(second["nuclei"], {"fov0": Identity()}, set_all=True)
    only = nb.tl.train_embedding(
        second, centers="nuclei", channels=["CD20", "CD3"], epochs=1, batch_size=12, seed=5, **QUIET
    )
    assert only.markers == ("CD20", "CD3"), "the order that was asked for"
    assert only.card.training_data.startswith("63 cells of 1 elements (nuclei), 2 markers")
    assert (only.card.training["epochs"], only.card.training["batch"], only.card.training["seed"]) == (
        1,
        12,
        5,
    )
    both = nb.tl.train_embedding(
        {"a": sdata, "b": second}, image=None, centers=None, architecture="next_channel", **QUIET
    )
    assert type(both.net).__name__ == "NeXtChannel"
    assert "3 elements" in both.card.training_data
    scales = Normalization(tuple(reversed(CHANNELS)), (4.0, 3.0, 2.0, 1.0), 0.99, "dataset", ())
    given = nb.tl.train_embedding(
        sdata, normalization=scales, architecture={"kind": "cim", "width": 3}, **QUIET
    )
    assert given.card.scale == dict(zip(CHANNELS, (1.0, 2.0, 3.0, 4.0), strict=True))
    assert given.card.quantile == 0.99
    assert given.net.config.width == 3


def test_bad_input_is_refused_before_anything_is_written(sdata, tmp_path, unchanged):
    def refused(message, error=InputError, source=sdata, **options):
        with unchanged(source), pytest.raises(error, match=message):
            nb.tl.train_embedding(source, out=tmp_path / "x", **QUIET | options)
        assert not (tmp_path / "x").exists()

    refused("config='huge' is no preset; valid: small, paper, cim", config="huge")
    refused("trainer='keras'; valid: plain, lightning", trainer="keras")
    refused("architecture kind 'vit' is unknown; valid: next_channel, cim", architecture="vit")
    refused(r"architecture: markers=\['CD3'\], but", architecture={"kind": "cim", "markers": ["CD3"]})
    refused("at least 16 px", architecture={"kind": "next_channel", "depths": (1, 1, 1, 1)})
    refused("no channel .'CD99'.", ChannelNotFoundError, channels=["CD3", "CD99"])
    refused("nuclei", ElementNotFoundError, centers="nuclei")
    refused("no obs|has this column", ElementNotFoundError, probe="types")
    refused("name the column of its obs with probe=", table="truth")
    refused("no table 'cells'", ElementNotFoundError, probe="cell_type", table="cells")
    refused(r"no scale for \['PanCK'", normalization=Normalization(("CD3",), (1.0,), 0.99, "dataset", ()))
    refused(r"cells to train on, fewer than the 5000 of a batch; take a smaller batch_size=", batch_size=5000)
    refused(r"batch must lie in \[2, ", batch_size=1)
    refused("cache=-1 must be a number of bytes", cache=-1)
    refused("device='cuda:9'", device="cuda:9")
    refused("too small for patches of 1000 px", config=replace(TINY, size=1000))


def test_few_cells_shrink_the_batch_and_one_is_refused():
    sdata = tissue((64, 64), n_fovs=1)
    sdata["few"] = PointsModel.parse(np.array([[20.0, 20], [30, 40], [40, 20]]))
    set_transformation(sdata["few"], {"fov0": Identity()}, set_all=True)
    with pytest.warns(NimbusWarning, match="3 cells to train on are fewer than a batch of 16"):
        model = nb.tl.train_embedding(sdata, centers="few", **QUIET)
    assert model.card.training["batch"] == 3
    assert "probe" not in model.card.metrics
    sdata["one"] = PointsModel.parse(np.array([[20.0, 20]]))
    set_transformation(sdata["one"], {"fov0": Identity()}, set_all=True)
    with pytest.raises(InputError, match="1 cell to train on: a contrastive loss needs at least 2"):
        nb.tl.train_embedding(sdata, centers="one", **QUIET)


def test_pixels_that_are_no_numbers_are_named(tmp_path):
    sdata = tissue((64, 64), n_fovs=1)
    image = sdata["fov0_image"].astype("float32").load()
    image.data[2, 30, 30] = np.nan
    sdata["fov0_image"] = image.chunk()
    scales = Normalization(tuple(CHANNELS), (1.0,) * 4, 0.99, "dataset", ())
    for normalization in (None, scales):
        with pytest.raises(InputError, match=r"fov0_image.*CD20"):
            nb.tl.train_embedding(sdata, normalization=normalization, batch_size=4, **QUIET)


def test_a_probe_needs_classes_and_one_table(sdata):
    other = tissue()
    truth = other["truth"]
    truth.obs["same"] = "x"
    with pytest.raises(InputError, match="probe='same': the cells have only 'x' there"):
        nb.tl.train_embedding(other, probe="same", **QUIET)
    copy = AnnData(obs=truth.obs.copy())
    other["again"] = TableModel.parse(
        copy, region=list(truth.obs["region"].cat.categories), region_key="region", instance_key="instance_id"
    )
    with pytest.raises(InputError, match=r"several tables .* have it \(truth, again\); pass table="):
        nb.tl.train_embedding(other, probe="cell_type", **QUIET)
    # rows follow ids: neither their order nor missing cells matter
    other["again"].obs["half"] = np.where(np.arange(copy.n_obs) % 2, copy.obs["cell_type"].astype(str), None)
    mixed = other["again"][np.random.default_rng(0).permutation(copy.n_obs)].copy()
    del other.tables["again"]
    other["again"] = mixed
    given = nb.tl.train_embedding(other, probe="cell_type", table="truth", **QUIET)
    shuffled = nb.tl.train_embedding(other, probe="cell_type", table="again", **QUIET)
    assert given.card.metrics == shuffled.card.metrics
    part = nb.tl.train_embedding(other, probe="half", **QUIET)
    assert 0 < part.card.metrics["probe_cells"] < given.card.metrics["probe_cells"]
    for judged in (shuffled, part, nb.tl.train_embedding(other, **QUIET)):
        assert_same(given, judged)
    few = other["again"].obs["half"].where(np.arange(copy.n_obs) < 8)
    other["again"].obs["few"] = few
    with pytest.raises(
        InputError, match=r"probe='few': of \d+ held-out cells \d have a class there, too few"
    ):
        nb.tl.train_embedding(other, probe="few", **QUIET)


def test_another_model_in_the_folder_is_not_overwritten(sdata, tmp_path):
    model = nb.tl.train_embedding(sdata, out=tmp_path, **QUIET)
    with pytest.raises(InputError, match=r"another configuration \(seed differ\)"):
        nb.tl.train_embedding(sdata, out=tmp_path, seed=1, **QUIET)
    (tmp_path / "run" / "last.pt").unlink()
    with pytest.raises(InputError, match="holds a model of another run"):
        nb.tl.train_embedding(sdata, out=tmp_path, **QUIET)
    assert json.loads((tmp_path / "embedding.json").read_text())["sha256"] == model.card.sha256


def test_a_run_does_not_go_on_with_channels_in_other_places(tmp_path):
    """The same names over other planes are other pixels, though cells, markers and scales are the same."""
    sdata = tissue(shape=(96, 96))
    options = {**QUIET, "channels": ["CD3", "PanCK"], "out": tmp_path}
    scales = nb.pp.normalization(sdata, channels=["CD3", "PanCK"], progress=False)
    nb.tl.train_embedding(sdata, stop_at=1, normalization=scales, **options)
    for name in list(sdata.images):
        names = [str(c) for c in sdata.images[name].coords["c"].values]
        a, b = names.index("CD3"), names.index("PanCK")
        names[a], names[b] = names[b], names[a]
        sdata.images[name] = sdata.images[name].assign_coords(c=names)
    with pytest.raises(InputError, match="other"):
        nb.tl.train_embedding(sdata, normalization=scales, **options)
