"""``nb.pp.integrated_expression`` writes the same kind of table."""

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning


def run(sdata, **options):
    nb.pp.integrated_expression(sdata, progress=False, **options)
    return sdata[options.get("table", "integrated_expression")]


def pixels(sdata, table):
    for region, i in zip(table.obs["region"], table.obs["instance_id"], strict=True):
        field = region.removesuffix("_labels")
        inside = np.asarray(sdata[region].data) == i
        yield np.asarray(sdata[f"{field}_image"].data)[:, inside].astype(float)


def test_statistics_and_quantiles(factory, tmp_path):
    sdata = factory(2, chunks=(1, 20, 30))
    table = run(sdata, statistics=["mean", "sum", "min", "max"], quantiles=[0.5, 0.95])
    cells = list(pixels(sdata, table))
    assert table.X.dtype == np.float32
    np.testing.assert_allclose(table.X, [p.mean(1) for p in cells], rtol=1e-6)
    expected = {
        "sum": [p.sum(1) for p in cells],
        "min": [p.min(1) for p in cells],
        "max": [p.max(1) for p in cells],
        "q0.5": [np.quantile(p, 0.5, axis=1) for p in cells],
        "q0.95": [np.quantile(p, 0.95, axis=1) for p in cells],
    }
    assert set(table.layers) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(table.layers[name], values, rtol=1e-6)
    assert isinstance(table.obs["region"].dtype, pd.CategoricalDtype)
    assert table.obs["area_px"].tolist() == [p.shape[1] for p in cells]
    sdata.write(tmp_path / "s.zarr")
    again = sd.read_zarr(tmp_path / "s.zarr")["integrated_expression"]
    np.testing.assert_array_equal(again.layers["q0.95"], table.layers["q0.95"])


def test_rows_agree_with_the_scores(factory, score):
    sdata = factory(2)
    scores, means = score(sdata, channels="all"), run(sdata)
    assert scores.obs_names.equals(means.obs_names)
    np.testing.assert_allclose(means.X, scores.layers["integrated_expression"], rtol=1e-6)
    np.testing.assert_allclose(means.obsm["spatial"], scores.obsm["spatial"])


def test_the_first_statistic_is_x_and_no_pixel_size_is_needed(factory):
    sdata = factory(mpp=None)
    table = run(sdata, statistics="max")
    assert "area_um2" not in table.obs
    assert table.uns["integrated_expression"] == {"statistic": "max"}
    assert not table.layers
    np.testing.assert_array_equal(table.X, [p.max(1) for p in pixels(sdata, table)])
    assert list(run(sdata, channels=["CD20"], table="one").var_names) == ["CD20"]


def test_a_field_without_cells_is_left_out_with_a_warning(factory):
    sdata = factory(2)
    sdata["fov0_labels"].data = sdata["fov0_labels"].data * 0
    with pytest.warns(NimbusWarning, match="no labelled pixel in fov0_labels"):
        table = run(sdata, statistics=["mean", "min"], quantiles=[0.5])
    assert table.obs["region"].unique().tolist() == ["fov1_labels"]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"statistics": ["median"]}, InputError, r"\['median'\].*valid: mean, sum, min, max"),
        ({"statistics": []}, InputError, "valid: mean"),
        ({"statistics": ["sum", "sum"]}, InputError, "each once"),
        ({"quantiles": [0.5, 95]}, InputError, r"\[95\] must lie in \[0, 1\]"),
        ({"channels": ["x"]}, ElementNotFoundError, r"no channel \['x'\]; valid: CD3"),
        ({"labels": "x"}, ElementNotFoundError, r"no labels 'x'.*'fov0_labels'"),
        ({"table": "fov0_labels"}, InputError, r"name of another element"),
    ],
)
def test_errors_change_nothing(sdata, unchanged, options, error, said):
    with unchanged(sdata), pytest.raises(error, match=said):
        run(sdata, **options)


def test_a_table_is_kept_unless_told(sdata, unchanged):
    run(sdata)
    with unchanged(sdata), pytest.raises(InputError, match=r"'integrated_expression' exists.*overwrite=True"):
        run(sdata)
    assert run(sdata, overwrite=True, statistics="sum").X.max() > 1000


def test_empty_labels_and_bad_pixels(sdata, unchanged):
    image = np.asarray(sdata["fov0_image"].data).astype("float32")
    labels = sdata["fov0_labels"].data
    sdata["fov0_labels"].data = labels * 0
    with unchanged(sdata), pytest.raises(InputError, match="'fov0_labels': no labelled pixel"):
        run(sdata, statistics=["mean", "max"])
    sdata["fov0_labels"].data = labels
    image[2, 3, 4] = np.nan
    sdata["fov0_image"].data = image
    with unchanged(sdata), pytest.raises(InputError, match=r"image 'fov0_image', channel 'CD20': 1 NaN"):
        run(sdata)
