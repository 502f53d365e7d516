"""Models with a cell head: scores depend on the dataset, never on tiles, and the context can be handed on."""

import numpy as np
import pytest
import spatialdata as sd
import torch

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, WeightsError
from nimbus_sd.models import ModelCard, UNet, UNetConfig, loading
from nimbus_sd.models.head import CellHead

CHANNELS = ["CD3", "PanCK"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(1)
    net, head = UNet(UNetConfig(width=2)).eval(), CellHead().eval()
    folder = tmp_path_factory.mktemp("headed")
    card = ModelCard(name="headed", architecture={"width": 2}, transform="sqrt")
    loading.save(net, folder, card, half=False, head=head)
    return nb.models.load(folder)


@pytest.fixture
def sdata():
    return nb.datasets.simulated_tissue(n_fovs=2, shape=(176, 144), mpp=1.0, channels=CHANNELS)


def run(sdata, model, **options):
    nb.tl.predict(sdata, model=model, precision="float32", progress=False, overwrite=True, **options)
    return sdata["nimbus"]


def test_scores_do_not_depend_on_tiles(sdata, model):
    whole, tiled = run(sdata, model).X.copy(), run(sdata, model, tile=32).X
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    assert whole.std() > 0


def test_the_head_changes_the_scores_and_the_card_says_so(sdata, model):
    plain = nb.models.LoadedModel(
        net=model.net, card=ModelCard(name="plain", architecture={"width": 2}, transform="sqrt")
    )
    assert model.card.score_rule == "cell_head"
    assert np.abs(run(sdata, model).X - run(sdata, plain).X).max() > 1e-3
    assert "context" not in sdata["nimbus"].uns["nimbus"]


def test_one_field_is_judged_alike_when_context_and_scales_are_handed_on(sdata, model):
    scales = nb.pp.normalization(sdata, progress=False)
    both = run(sdata, model, normalization=scales).copy()
    second = both[both.obs["region"] == "fov1_labels"]
    alike = run(sdata, model, labels="fov1_labels", normalization=scales, context=both)
    np.testing.assert_array_equal(alike.X, second.X)
    alone = run(sdata, model, labels="fov1_labels", normalization=scales)
    assert np.abs(alone.X - second.X).max() > 0


def test_context_survives_the_store(sdata, model, tmp_path):
    sdata.write(tmp_path / "a.zarr")
    run(sdata, model, write=True)
    found = sd.read_zarr(tmp_path / "a.zarr")["nimbus"].uns["nimbus"]
    assert found["context"].shape[0] == len(CHANNELS)
    assert list(found["context_markers"]) == CHANNELS


def test_a_table_without_context_or_marker_is_refused(sdata, model):
    table = run(sdata, model, channels=["CD3"]).copy()
    with pytest.raises(InputError, match=r"no context for \['PanCK'\]"):
        run(sdata, model, context=table)
    del table.uns["nimbus"]["context"]
    with pytest.raises(InputError, match="holds no context"):
        run(sdata, model, context=table)


def test_views_and_their_spread_are_the_heads(sdata, model):
    table = run(sdata, model, views=8, score_std=True)
    assert table.layers["score_std"].max() > 0
    assert ((table.X >= 0) & (table.X <= 1)).all()


def test_intensity_can_be_left_out_of_the_table(sdata, model):
    kept = run(sdata, model).X.copy()
    table = run(sdata, model, integrated_expression=False)
    assert "integrated_expression" not in table.layers
    np.testing.assert_array_equal(table.X, kept)


def test_into_an_existing_table(sdata, model):
    scores = run(sdata, model).to_df()
    nb.tl.predict(sdata, model=model, precision="float32", into="truth", progress=False)
    truth = sdata["truth"]
    found = truth.to_df("nimbus").reindex(scores.index)[CHANNELS]
    np.testing.assert_array_equal(found.to_numpy(), scores.to_numpy())


def test_card_and_weights_must_agree_on_the_head(model, tmp_path):
    with pytest.raises(WeightsError, match="goes with score_rule"):
        ModelCard(name="x", score_rule="cell_head")
    card = ModelCard(name="x", architecture={"width": 2}, score_rule="cell_head", head={"hidden": 48})
    loading.save(model.net, tmp_path, card)
    with pytest.raises(WeightsError, match="disagree on whether there is a cell head"):
        nb.models.load(tmp_path)
    with pytest.raises(WeightsError, match="what this version computes"):
        _ = ModelCard(name="x", score_rule="cell_head", head={"n_features": 3}).head_config


def test_a_model_with_extra_planes_is_refused(sdata, tmp_path):
    card = ModelCard(name="three", architecture={"width": 2, "in_channels": 3})
    loading.save(UNet(UNetConfig(width=2, in_channels=3)), tmp_path, card)
    with pytest.raises(WeightsError, match="reads 3 planes"):
        run(sdata, tmp_path)
