"""The chain that makes the bundled weights, at toy size: studies, U-Net, head, metrics, card."""

import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.metrics import best_threshold
from nimbus_sd.arrays.reliability import expected_calibration_error
from nimbus_sd.engine.training import bundled
from nimbus_sd.engine.training.cell_head import HeadTraining, fit_head, marker_cells
from nimbus_sd.engine.training.held_out import f1
from nimbus_sd.engine.training.studies import StudyConfig, StudySource, simulate_studies
from nimbus_sd.models import UNet, UNetConfig, load

SMALL = StudyConfig(5, 3, n_fields=2, n_channels=2, side=160)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    size = {"datasets": 2, "head_datasets": 2, "held_out": 2, "validation": 1, "side": 192}
    card = bundled.train(out, width=2, steps=3, precision="float32", device="cpu", command="c", **size)
    return out, card, size


def test_the_weights_load_with_their_head_and_say_how_they_were_made(run):
    out, card, _ = run
    model = load(out / "weights")
    assert model.head is not None
    assert model.card == card
    assert model.card.score_rule == "cell_head"
    assert model.card.command == "c"
    assert set(card.metrics["simulated_held_out"]) >= {"ece", "markers"}
    assert "H&E" in card.limits


def test_the_same_call_gives_the_same_weights(run, tmp_path):
    _, card, size = run
    again = bundled.train(tmp_path, width=2, steps=3, precision="float32", device="cpu", command="c", **size)
    assert again.sha256 == card.sha256


def test_another_networks_weights_can_be_the_start(tmp_path, run):
    out, card, size = run
    child = bundled.train(
        tmp_path, width=2, steps=1, precision="float32", device="cpu", parent=str(out / "weights"), **size
    )
    assert card.sha256 in child.training_data


def test_studies_come_back_as_they_were_simulated_and_are_not_made_twice(tmp_path):
    source = StudySource(SMALL)
    stored = simulate_studies(tmp_path, SMALL, shard=2)
    assert len(stored) == len(source) == 3 * 2 * 2
    for i in (0, 5, 11):
        a, b = source.tile(i), stored.tile(i)
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_array_equal(a.target, b.target)
        np.testing.assert_allclose(a.image, b.image, rtol=1e-3)
        assert (a.dataset, a.marker, a.field) == (b.dataset, b.marker, b.field)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    simulate_studies(tmp_path, SMALL, shard=2)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


def test_every_other_study_carries_silver_labels():
    both, truth = (
        StudySource(SMALL),
        StudySource(StudyConfig(5, 3, n_fields=2, n_channels=2, side=160, labels="truth")),
    )
    differ = [
        any(not np.array_equal(both.tile(i).target, truth.tile(i).target, equal_nan=True) for i in rows)
        for rows in (range(4), range(4, 8), range(8, 12))
    ]
    assert differ[1] is False
    assert differ[0] or differ[2]
    with pytest.raises(InputError, match="truth, silver, both"):
        StudyConfig(labels="gold")


def test_the_head_learns_from_intensity_even_if_the_network_knows_nothing():
    torch.manual_seed(0)
    net = UNet(UNetConfig(width=2)).eval()
    source = StudySource(StudyConfig(0, 4, n_fields=2, n_channels=3, side=192, labels="truth"))
    cells = list(marker_cells(net, source, HeadTraining()))
    assert len(cells) == 12
    head = fit_head(cells, HeadTraining(epochs=3, batch=512))
    again = fit_head(cells, HeadTraining(epochs=3, batch=512))
    for a, b in zip(head.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    x = torch.from_numpy(np.concatenate([c.features() for c in cells]))
    y = np.concatenate([c.target for c in cells])
    known = ~np.isnan(y)
    score = torch.sigmoid(head(x)).detach().numpy()[known]
    assert score[y[known] == 1].mean() > score[y[known] == 0].mean() + 0.1


def test_metrics_against_slow_versions():
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.3
    values = np.round(np.where(truth, 0.6, 0.4) + rng.normal(0, 0.2, 200), 2)
    slow = max(f1(truth, values >= t) for t in np.unique(values))
    assert best_threshold(truth, values)[1] == pytest.approx(slow)
    score = np.clip(values, 0, 1)
    expected = 0.0
    for low in np.arange(15) / 15:
        rows = (score >= low) & ((score < low + 1 / 15) | (low > 0.9))
        if rows.any():
            expected += rows.mean() * abs(score[rows].mean() - truth[rows].mean())
    assert expected_calibration_error(truth, score) == pytest.approx(expected, abs=1e-3)
