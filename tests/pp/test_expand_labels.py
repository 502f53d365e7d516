"""Grown masks equal scikit-image's on the whole array, whatever the chunks."""

import dask.array as da
import numpy as np
import pytest
from skimage.segmentation import expand_labels
from spatialdata.transformations import get_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.testing import random_labels


@pytest.mark.parametrize("chunks", [(70, 52), (20, 13), (7, 50)])
@pytest.mark.parametrize(("distance", "mpp"), [(3.0, 1.0), (2.0, 0.5), (1.2, 1.0)])
def test_equals_the_whole_array(factory, chunks, distance, mpp):
    sdata = factory(mpp=mpp)
    labels = random_labels((70, 52), n=9, seed=4, ids=[1, 2, 3, 4_000_000_000, 5, 6, 7, 8, 9])
    sdata["fov0_labels"].data = da.from_array(labels, chunks=chunks)
    nb.pp.expand_labels(sdata, "fov0_labels", distance=distance)
    got = sdata["fov0_labels_expanded"].data.compute()
    expected = expand_labels(labels, distance / mpp)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got[labels > 0], labels[labels > 0])
    assert got.dtype == labels.dtype
    assert (got > 0).sum() > (labels > 0).sum()


def test_name_transformations_and_source_are_kept(factory, score):
    sdata = factory(mpp=0.5)
    before = np.asarray(sdata["fov0_labels"].data).copy()
    nb.pp.expand_labels(sdata, "fov0_labels", distance=1.0, key_added="cells")
    np.testing.assert_array_equal(np.asarray(sdata["fov0_labels"].data), before)
    ours, theirs = (get_transformation(sdata[n], get_all=True) for n in ("cells", "fov0_labels"))
    assert ours == theirs
    # and it serves as a segmentation
    table = score(sdata, labels="cells")
    assert table.obs["region"].unique().tolist() == ["cells"]


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("cells", {"distance": 1.0}, ElementNotFoundError, r"no labels 'cells'.*'fov0_labels'"),
        ("fov0_labels", {"distance": 0}, InputError, r"distance=0 must be a positive number of µm"),
        ("fov0_labels", {"distance": float("nan")}, InputError, r"distance=nan"),
        (
            "fov0_labels",
            {"distance": 1.0, "key_added": "fov0_image", "overwrite": True},
            InputError,
            r"'fov0_image' is the name of another element",
        ),
        ("fov0_labels", {"distance": 1.0, "mpp": 0}, InputError, r"mpp=0"),
    ],
)
def test_errors_change_nothing(sdata, unchanged, name, options, error, said):
    with unchanged(sdata), pytest.raises(error, match=said):
        nb.pp.expand_labels(sdata, name, **options)


def test_the_pixel_size_must_be_known_and_overwrite_replaces(factory, unchanged):
    sdata = factory(mpp=None)
    with (
        unchanged(sdata),
        pytest.raises(InputError, match=r"'fov0_labels': the pixel size is unknown; pass mpp="),
    ):
        nb.pp.expand_labels(sdata, "fov0_labels", distance=1.0)
    nb.pp.expand_labels(sdata, "fov0_labels", distance=1.0, mpp=1.0)
    first = (sdata["fov0_labels_expanded"].data.compute() > 0).sum()
    with unchanged(sdata), pytest.raises(InputError, match=r"overwrite=True.*key_added="):
        nb.pp.expand_labels(sdata, "fov0_labels", distance=5.0, mpp=1.0)
    nb.pp.expand_labels(sdata, "fov0_labels", distance=5.0, mpp=1.0, overwrite=True)
    assert (sdata["fov0_labels_expanded"].data.compute() > 0).sum() > first
