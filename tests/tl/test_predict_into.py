"""Scores for a table that exists: joined on instance id, and nothing else changes."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from spatialdata.models import TableModel

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning


def add_table(
    sdata, *, regions=("fov0_labels",), drop=0, extra=(), shuffle=True, channels=("CD20", "other", "CD3")
):
    """A table over the labels, its rows shuffled, some missing, some for labels that don't exist."""
    obs = []
    for region in regions:
        ids = np.unique(np.asarray(sdata[region].data))[1:].tolist()
        ids = [*ids[drop:], *extra]
        obs.append(pd.DataFrame({"where": region, "cell": ids}))
    obs = pd.concat(obs).sample(frac=1.0 if shuffle else None, n=None if shuffle else 1, random_state=0)
    obs.index = [f"row{i}" for i in range(len(obs))]
    obs["where"] = obs["where"].astype("category")
    table = ad.AnnData(
        np.arange(len(obs) * len(channels), dtype=np.float32).reshape(len(obs), -1),
        obs=obs,
        var=pd.DataFrame(index=list(channels)),
        layers={"raw": np.ones((len(obs), len(channels)), np.float32)},
        uns={"mine": 1},
    )
    sdata["cells"] = TableModel.parse(table, region=list(regions), region_key="where", instance_key="cell")
    return sdata["cells"].copy()


def rows(table, region, ids, *, region_key="region", instance_key="instance_id"):
    obs = table.obs.reset_index(drop=True)
    position = {(r, i): k for k, (r, i) in enumerate(zip(obs[region_key], obs[instance_key], strict=True))}
    return [position[region, i] for i in ids]


def test_joined_on_instance_id_and_markers(factory, score):
    sdata = factory(2)
    regions = ("fov0_labels", "fov1_labels")
    before = add_table(sdata, regions=regions)
    expected = score(sdata)
    table = score(sdata, into="cells")
    assert set(table.layers) == {"raw", "nimbus"}
    assert table.layers["nimbus"].dtype == np.float32
    for region in regions:
        ids = before.obs.loc[before.obs["where"] == region, "cell"].tolist()
        there = rows(expected, region, ids)
        here = rows(table, region, ids, region_key="where", instance_key="cell")
        for column, name in enumerate(table.var_names):
            got = table.layers["nimbus"][here, column]
            if name == "other":
                assert np.isnan(got).all()
            else:
                # two markers instead of three share a batch: equal but for rounding
                np.testing.assert_allclose(got, expected[there, name].X[:, 0], atol=1e-6)
    pd.testing.assert_frame_equal(table.obs, before.obs)
    pd.testing.assert_frame_equal(table.var, before.var)
    np.testing.assert_array_equal(table.X, before.X)
    np.testing.assert_array_equal(table.layers["raw"], before.layers["raw"])
    assert set(table.uns) == {*before.uns, "nimbus"}


def test_rows_without_pixels_get_nan_and_are_counted(sdata, score):
    add_table(sdata, drop=3, extra=(900, 901))
    with pytest.warns(
        NimbusWarning, match=r"'nimbus': 2 rows have no labelled pixel.*NaN; 3 labels have no row"
    ):
        table = score(sdata, into="cells")
    missing = table.obs["cell"].isin([900, 901]).to_numpy()
    scores = table.layers["nimbus"][:, [0, 2]]
    assert np.isnan(scores[missing]).all()
    assert np.isfinite(scores[~missing]).all()


def test_rows_of_other_labels_stay_nan(factory, score):
    sdata = factory(2)
    add_table(sdata, regions=("fov0_labels", "fov1_labels"))
    table = score(sdata, into="cells", labels="fov1_labels")
    scored = (table.obs["where"] == "fov1_labels").to_numpy()
    assert np.isfinite(table.layers["nimbus"][scored][:, [0, 2]]).all()
    assert np.isnan(table.layers["nimbus"][~scored]).all()


def test_a_sample_without_labelled_pixels_beside_one_with(factory, score):
    sdata = factory(2)
    add_table(sdata, regions=("fov0_labels", "fov1_labels"))
    sdata["fov1_labels"].data = sdata["fov1_labels"].data * 0
    with pytest.warns(NimbusWarning, match=r"\d+ rows have no labelled pixel"):
        table = score(sdata, into="cells")
    assert np.isnan(table.layers["nimbus"][(table.obs["where"] == "fov1_labels").to_numpy()]).all()


def test_a_second_run_asks_for_overwrite(sdata, score, unchanged):
    add_table(sdata)
    score(sdata, into="cells")
    with unchanged(sdata), pytest.raises(InputError, match=r"'cells' has a layer 'nimbus'.*overwrite=True"):
        score(sdata, into="cells")
    score(sdata, into="cells", overwrite=True)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"into": "cellz"}, ElementNotFoundError, r"no table 'cellz'.*'cells'"),
        (
            {"into": "cells", "labels": "fov1_labels"},
            InputError,
            r"annotates \['fov0_labels'\], not \['fov1_labels'\]",
        ),
        ({"into": "cells"}, InputError, r"annotates \['fov0_labels'\], not \['fov1_labels'\].*labels="),
        (
            {"into": "cells", "labels": "fov0_labels", "channels": ["CD3", "CD8"]},
            InputError,
            r"'cells' has no marker \['CD8'\]; valid: CD20, other, CD3",
        ),
    ],
)
def test_tables_that_do_not_fit(factory, score, unchanged, options, error, said):
    sdata = factory(2)
    add_table(sdata)
    with unchanged(sdata), pytest.raises(error, match=said):
        score(sdata, **options)


def test_a_table_without_common_markers_or_regions(sdata, score, unchanged):
    add_table(sdata, channels=("a", "b"))
    with (
        unchanged(sdata),
        pytest.raises(InputError, match=r"'cells' and the image have no marker in common.*CD3"),
    ):
        score(sdata, into="cells")
    sdata["free"] = TableModel.parse(
        ad.AnnData(np.ones((2, 3), np.float32), var=pd.DataFrame(index=["CD3", "CD8", "x"]))
    )
    with unchanged(sdata), pytest.raises(InputError, match=r"'free' annotates nothing"):
        score(sdata, into="free")


def test_all_labels_empty(sdata, score, unchanged):
    add_table(sdata)
    sdata["fov0_labels"].data = sdata["fov0_labels"].data * 0
    with unchanged(sdata), pytest.raises(InputError, match=r"'fov0_labels': no labelled pixel"):
        score(sdata, into="cells")
