"""Looks of cells: typical by type, and as hard to tell apart as the documentation says."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from nimbus_sd.simulation import CELL_TYPES, SectionConfig
from nimbus_sd.simulation.lymphocytes import LEUKOCYTES, populate
from nimbus_sd.simulation.morphology import LOOKS, draw_morphology
from nimbus_sd.simulation.tissue import AGGREGATE, EPITHELIUM, grow_tissue

SHARES = {"B": 0.04, "CD4 T": 0.05, "CD8 T": 0.05, "Treg": 0.007, "basal": 0.05, "dendritic": 0.014}
SHARES |= {"endothelial": 0.03, "epithelial": 0.51, "fibroblast": 0.18, "macrophage": 0.04}
SHARES |= {"mast": 0.004, "smooth muscle": 0.025}
POSITIVE = {
    "CD45": LEUKOCYTES,
    "CD3e": ("CD4 T", "CD8 T", "Treg"),
    "CD4": ("CD4 T", "Treg"),
    "CD8a": ("CD8 T",),
}


@pytest.fixture(scope="module")
def tissue():
    config = SectionConfig(shape=(600, 600))
    return grow_tissue(np.random.default_rng(0), config.shape, config.grown, config.mpp)


@pytest.fixture(scope="module")
def drawn():
    """Types and looks of many cells."""
    rng = np.random.default_rng(0)
    share = np.array([SHARES[kind] for kind in CELL_TYPES])
    types = rng.choice(len(CELL_TYPES), 40_000, p=share / share.sum()).astype(np.uint8)
    looks = draw_morphology(rng, types)
    return np.array(CELL_TYPES)[types], np.stack(list(looks.table().values()), 1)


def _fit(drawn, marker):
    """Truth and probability of the second half, by a classifier that saw the drawn looks of the first."""
    names, x = drawn
    y, half = np.isin(names, POSITIVE[marker]), len(names) // 2
    model = HistGradientBoostingClassifier(max_iter=60, min_samples_leaf=40, random_state=0)
    model.fit(x[:half], y[:half])
    return names[half:], y[half:], model.predict_proba(x[half:])[:, 1]


@pytest.mark.parametrize(
    ("marker", "low", "high"),
    [("CD45", 0.94, 0.98), ("CD3e", 0.93, 0.975), ("CD4", 0.91, 0.97), ("CD8a", 0.89, 0.96)],
)
def test_nobody_can_do_better_than_this(drawn, marker, low, high):
    _, truth, probability = _fit(drawn, marker)
    assert low < roc_auc_score(truth, probability) < high


def test_rare_types_need_weights(drawn):
    """Few cells are more likely CD8 T than not, though a lower threshold finds them."""
    _, truth, probability = _fit(drawn, "CD8a")
    assert balanced_accuracy_score(truth, probability > 0.5) < 0.7
    assert balanced_accuracy_score(truth, probability > truth.mean()) > 0.82


def test_helper_and_cytotoxic_cells_differ_a_little(drawn):
    names, _, probability = _fit(drawn, "CD8a")
    t_cell = np.isin(names, POSITIVE["CD3e"])
    assert 0.6 < roc_auc_score(names[t_cell] == "CD8 T", probability[t_cell]) < 0.85


def test_medians_are_those_of_the_types():
    rng = np.random.default_rng(0)
    for kind in ("epithelial", "CD4 T", "fibroblast"):
        looks = draw_morphology(rng, np.full(5000, CELL_TYPES.index(kind), np.uint8))
        assert np.median(looks.diameter) == pytest.approx(LOOKS[kind].diameter, rel=0.1)
        assert np.median(looks.haematoxylin) == pytest.approx(LOOKS[kind].haematoxylin, rel=0.1)
        assert (looks.ratio >= 1).all()


@pytest.mark.parametrize("immune", [0.05, 0.2, 0.6])
def test_share_of_leukocytes(tissue, immune):
    types = np.array(CELL_TYPES)[populate(np.random.default_rng(1), tissue, immune)[1:]]
    aggregated = 0.94 * (_region(tissue) == AGGREGATE).mean()
    wanted = max(immune, aggregated + 0.3 * immune)
    assert np.isin(types, LEUKOCYTES).mean() == pytest.approx(wanted, abs=0.03)


def test_leukocytes_in_epithelium_are_mostly_cytotoxic(tissue):
    types = np.array(CELL_TYPES)[populate(np.random.default_rng(1), tissue, 0.6)[1:]]
    inside = types[(_region(tissue) == EPITHELIUM) & np.isin(types, LEUKOCYTES)]
    assert len(inside) > 20
    assert (inside == "CD8 T").mean() > 0.4


def _region(tissue):
    at = tissue.centres[1:].astype(int)
    return tissue.region[at[:, 0], at[:, 1]]
