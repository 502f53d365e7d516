"""nb.pl.evaluation, nb.pl.confounders, nb.pl.reliability: what is drawn where."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.arrays.metrics import METRICS
from nimbus_sd.arrays.reliability import reliability_bins
from nimbus_sd.pl._reliability import wilson


@pytest.fixture
def frame():
    rows = [
        {"marker": m, "scores": s, "f1": f, "f1_lower": f - 0.1, "f1_upper": f + 0.1}
        for m, both in {"CD3": (0.5, 0.4), "CD8": (0.9, 0.3), "CD20": (np.nan, np.nan)}.items()
        for s, f in zip(("X", "mean"), both, strict=True)
    ]
    out = pd.DataFrame(rows)
    for name in METRICS:
        out[name] = out["f1"]
    return out


def test_dots_lie_at_the_metric_and_rows_are_sorted(frame):
    axes = nb.pl.evaluation(frame, "f1", show=False)
    assert axes.shape == (1,)
    (ax,) = axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["CD8", "CD3", "CD20"]
    dots = {line.get_label(): line for line in ax.lines if line.get_label() in ("X", "mean")}
    np.testing.assert_allclose(dots["X"].get_xdata(), [0.9, 0.5, np.nan])
    np.testing.assert_allclose(dots["mean"].get_xdata(), [0.3, 0.4, np.nan])
    (limits, _) = ax.collections
    assert limits.get_segments()[0][:, 0].tolist() == pytest.approx([0.8, 1.0])
    dashes = [line for line in ax.lines if line.get_marker() == "_"]
    assert [len(line.get_xdata()) for line in dashes] == [1, 1]
    means = [
        line.get_xdata()[0]
        for line in ax.lines
        if line.get_linestyle() == "--" and len(line.get_xdata()) == 2
    ]
    assert means == pytest.approx([0.7, 0.35])


def test_the_legend_explains_every_line(frame):
    def texts(*arguments):
        legends = nb.pl.evaluation(*arguments, return_fig=True).legends
        return [t.get_text() for legend in legends for t in legend.get_texts()]

    assert texts(frame, "f1") == ["X", "mean", "mean of the rows"]
    assert texts(frame, ["f1", "auroc"]) == ["X", "mean", "mean of the rows", "guessing"]
    alone = frame[frame.scores == "X"]
    assert texts(alone, "f1") == ["mean of the rows"]
    assert texts(alone[alone.marker == "CD3"], "f1") == []


def test_order_of_the_frame_several_metrics_and_groups(frame):
    axes = nb.pl.evaluation(frame, ["f1", "ece"], sort=False, show=False)
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["CD3", "CD8", "CD20"]
    assert [ax.get_xlabel() for ax in axes] == ["F1", "calibration error"]
    twice = frame.assign(region="f0")[["marker", "region", *frame.columns[1:]]]
    axes = nb.pl.evaluation(twice, "f1", show=False)
    assert axes[0].get_yticklabels()[0].get_text() == "CD8 · f0"
    pooled = nb.pl.evaluation(frame[frame.marker == "CD3"].drop(columns="marker"), "f1", show=False)
    assert pooled[0].get_yticklabels()[0].get_text() == "all cells"


def test_rows_of_a_marker_stay_together():
    """CD4 is better on the mean, CD8 has the single best row; the worst is undefined."""
    f1 = {("CD8", "b"): 0.1, ("CD4", "b"): 0.6, ("CD8", "a"): 0.9, ("CD3", "a"): np.nan, ("CD4", "a"): 0.7}
    frame = pd.DataFrame(
        [{"marker": m, "patient": p, "scores": "X", "f1": v, "ece": v} for (m, p), v in f1.items()]
    )
    for name in METRICS:
        frame[name] = frame["f1"]
    axes = nb.pl.evaluation(frame, show=False)
    rows = [t.get_text() for t in axes[0].get_yticklabels()]
    assert rows == ["CD4 · a", "CD4 · b", "CD8 · a", "CD8 · b", "CD3 · a"]
    assert [ax.get_xlabel() for ax in axes] == ["F1", "AUROC", "balanced accuracy"]
    for ax, chance in zip(axes, ([], [0.5], [0.5]), strict=True):
        assert [line.get_ydata()[0] for line in ax.lines if line.get_gid() == "border"] == [1.5, 3.5]
        assert [line.get_xdata()[0] for line in ax.lines if line.get_gid() == "chance"] == chance
    axes = nb.pl.evaluation(frame, "ece", show=False)
    rows = [t.get_text() for t in axes[0].get_yticklabels()]
    assert rows == ["CD8 · b", "CD8 · a", "CD4 · b", "CD4 · a", "CD3 · a"]


def test_saved_and_real_frames(adata, tmp_path):
    adata.layers["truth"] = (adata.X > 0.5).astype(np.float32)
    found = nb.tl.evaluate(adata, "truth", n_bootstrap=5)
    nb.pl.evaluation(found, METRICS, save=tmp_path / "e.png")
    assert (tmp_path / "e.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "metrics", "error", "match"),
    [
        (lambda f: f, "accuracy", ElementNotFoundError, "valid: precision, recall"),
        (lambda f: f[:0], "f1", InputError, "at least one row"),
        (lambda f: f.drop(columns="scores"), "f1", InputError, r"nb\.tl\.evaluate"),
        (lambda f: pd.concat([f, f]), "f1", InputError, "several rows per group"),
    ],
)
def test_bad_frames(frame, change, metrics, error, match):
    with pytest.raises(error, match=match):
        nb.pl.evaluation(change(frame), metrics)


def test_confounders_show_every_value(tmp_path):
    frame = pd.DataFrame(
        [
            {"marker": m, "scores": s, "confounder": c, "mutual_information": v, "share": v / 2}
            for s in ("X", "mean")
            for m, v in {"CD3": 0.01, "CD8": 0.2, "(all)": 0.03}.items()
            for c in ("cell_size", "cell_density")
        ]
    )
    frame.loc[0, "mutual_information"] = np.nan
    axes = nb.pl.confounders(frame, show=False)
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["(all)", "CD8", "CD3"]
    drawn = axes[0].images[0].get_array()
    np.testing.assert_allclose(drawn.filled(np.nan), [[0.03, 0.03], [0.2, 0.2], [np.nan, 0.01]])
    assert drawn.shape == (3, 2)
    assert len(axes[0].texts) == 5
    nb.pl.confounders(frame, value="share", save=tmp_path / "c.pdf")
    with pytest.raises(ElementNotFoundError, match="valid: mutual_information, share"):
        nb.pl.confounders(frame, value="p")
    with pytest.raises(InputError, match=r"nb\.tl\.confounders"):
        nb.pl.confounders(frame.drop(columns="confounder"))


def test_reliability_draws_the_bins(adata, tmp_path):
    adata.layers["truth"] = (adata.X > 0.5).astype(np.float32)
    adata.layers["squeezed"] = adata.X / 2
    axes = nb.pl.reliability(adata, "truth", ["X", "squeezed"], show=False)
    bins = reliability_bins(adata.layers["truth"].ravel(), adata.X.ravel(), n_bins=10)
    drawn = {line.get_label().split(",")[0]: line for line in axes[0].lines}
    np.testing.assert_allclose(drawn["X"].get_xdata(), bins.mean_score)
    np.testing.assert_allclose(drawn["X"].get_ydata(), bins.share_positive)
    texts = [t.get_text() for t in axes[0].figure.legends[0].get_texts()]
    assert texts[0] == f"X, calibration error {bins.expected_calibration_error:.3f}"
    shares = axes[1].patches[0].get_data()
    assert shares.values.sum() == pytest.approx(1)
    nb.pl.reliability(adata, "truth", markers="CD8", strategy="mass", save=tmp_path / "r.png")
    with pytest.raises(InputError, match="valid: width, mass"):
        nb.pl.reliability(adata, "truth", strategy="rank")
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        nb.pl.reliability(adata, "truth", "integrated_expression")
    adata.layers["truth"][:] = np.nan
    with pytest.raises(InputError, match="nothing to draw"):
        nb.pl.reliability(adata, "truth")


def test_wilson_equals_the_textbook():
    lower, upper = wilson(np.array([0.5, 0.0]), np.array([100, 10]))
    assert lower == pytest.approx([0.4038, 0.0], abs=1e-3)
    assert upper == pytest.approx([0.5962, 0.2775], abs=1e-3)
