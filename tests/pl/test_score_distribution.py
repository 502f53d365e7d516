"""nb.pl.score_distribution: shares, truth and the two figures printed beside them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.pl._score_distribution import separation
from nimbus_sd.pl._style import NEUTRAL


def _shares(ax) -> list[np.ndarray]:
    """Filled histograms of an axes."""
    return [p.get_data().values for p in ax.patches if p.get_fill()]


def test_shares_add_up_and_sit_where_the_values_are(adata):
    axes = nb.pl.score_distribution(adata, show=False, bins=10)
    assert axes.shape == (3, 2)
    assert [ax.get_xlabel() for ax in axes[0]] == ["", "score; expression / scale"]
    assert "η: 1 two sharp groups, 0.75 evenly" in axes[0, 0].figure.get_suptitle()
    (score,) = _shares(axes[0, 0])
    np.testing.assert_allclose(score[[0, 1, 8, 9]].sum(), 1)
    assert score[:2].sum() == pytest.approx(0.5)
    (expression,) = _shares(axes[0, 1])  # 0.9 * 20 / 100 and 0.1 * 20 / 100
    assert expression[0] == expression[1] == 0.5
    assert axes[0, 0].get_xlim() == (0, 1)
    assert [ax.get_title(loc="left") for ax in axes[:, 0]] == ["CD3", "CD8", "CD20"]


def test_truth_splits_by_index_not_position(adata):
    truth = pd.DataFrame({"CD3": (adata.X[:, 0] > 0.5).astype(float)}, index=adata.obs_names)[::-1]
    truth.iloc[:4] = np.nan
    fig = nb.pl.score_distribution(adata, ["CD3", "CD8"], truth=truth, bins=10, return_fig=True)
    ax = fig.axes[0]
    negative, positive = _shares(ax)
    assert negative[:2].sum() == pytest.approx(1)
    assert positive[8:].sum() == pytest.approx(1)
    assert "AUROC 1.00" in ax.texts[0].get_text()
    texts = [t.get_text() for t in fig.legends[0].get_texts()]
    assert texts == ["truly positive", "truly negative", "no truth"]
    unsplit = fig.axes[2]
    assert len(_shares(unsplit)) == 1
    assert unsplit.patches[0].get_facecolor()[:3] == pytest.approx(
        tuple(int(NEUTRAL[i : i + 2], 16) / 255 for i in (1, 3, 5))
    )


def test_truth_from_a_layer_and_no_expression(adata):
    adata.layers["truth"] = (adata.X > 0.5).astype(np.float32)
    axes = nb.pl.score_distribution(adata, "CD8", truth="truth", expression_layer=None, show=False)
    assert axes.shape == (1, 1)
    assert axes[0, 0].get_xlabel() == "score"
    assert len(_shares(axes[0, 0])) == 2


def test_many_markers_are_limited(adata):
    wide = nb_table(30)
    with pytest.warns(NimbusWarning, match="first 24 of 30"):
        axes = nb.pl.score_distribution(wide, expression_layer=None, show=False)
    assert len(axes) == 24
    with pytest.raises(InputError, match="at most 24"):
        nb.pl.score_distribution(wide, list(wide.var_names))


def nb_table(n: int):
    import anndata as ad

    x = np.random.default_rng(0).random((20, n), dtype=np.float32)
    return ad.AnnData(x, var=pd.DataFrame(index=[f"m{i}" for i in range(n)]))


def test_save_and_default(adata, tmp_path):
    nb.pl.score_distribution(adata, "CD3", save=str(tmp_path / "d.pdf"))
    assert (tmp_path / "d.pdf").stat().st_size > 1000
    assert nb.pl.score_distribution(adata, "CD3") is None


def test_separation_equals_the_slow_search():
    x = np.random.default_rng(3).normal(size=60)
    best = 0.0
    for t in x[:-1]:
        low, high = x[x <= t], x[x > t]
        if low.size and high.size:
            between = low.size * high.size * (low.mean() - high.mean()) ** 2 / x.size**2
            best = max(best, between / x.var())
    assert separation(x) == pytest.approx(best)
    assert separation(np.linspace(0, 1, 2001)) == pytest.approx(0.75, abs=1e-3)
    assert separation(np.array([0.0, 0, 1, 1])) == pytest.approx(1)
    assert np.isnan(separation(np.ones(5)))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"markers": ["CD99"]}, ElementNotFoundError, "valid: CD3, CD8, CD20"),
        ({"expression_layer": "x"}, ElementNotFoundError, "layers: 'integrated_expression'"),
        ({"truth": "x"}, ElementNotFoundError, "no layer 'x'"),
        ({"truth": 3}, InputError, "DataFrame"),
        ({"truth": pd.DataFrame({"A": [1]})}, ElementNotFoundError, "its columns: A"),
        ({"truth": pd.DataFrame({"CD3": [1]}, index=["z"])}, InputError, "index it by obs_names"),
        ({"truth": "integrated_expression"}, InputError, "valid: 1 positive"),
        ({"bins": 1}, InputError, "bins=1"),
    ],
)
def test_errors(adata, arguments, error, match):
    with pytest.raises(error, match=match):
        nb.pl.score_distribution(adata, **arguments)


def test_spatialdata_is_refused_kindly(field):
    with pytest.raises(InputError, match=r"sdata\['nimbus'\]"):
        nb.pl.score_distribution(field.sdata)
