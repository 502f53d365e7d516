"""How often each chunk is read: never for planning, once for scales, once for scores."""

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.samples import resolve_samples
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.testing import CountedArray, random_image, random_labels

SHAPE = (96, 80)
NAMES = ["DAPI", "CD3", "CD8", "CD20"]
FITTED = Normalization(("CD3", "CD8", "CD20"), (900.0, 900.0, 900.0), 0.9999, "dataset", ())


@pytest.fixture(params=[(1, 32, 40), (4, 96, 80), (2, 50, 33)], ids=str)
def counted(request):
    """An object whose chunks are counted; the image's counter and the labels'."""
    labels = random_labels(SHAPE, n=25)
    image = CountedArray(random_image((4, *SHAPE)), request.param)
    segmentation = CountedArray(labels, request.param[1:])
    sdata = SpatialData.init_from_elements(
        {
            "image": Image2DModel.parse(image.dask, dims=("c", "y", "x"), c_coords=NAMES),
            "cells": Labels2DModel.parse(segmentation.dask, dims=("y", "x")),
        }
    )
    image.reads.clear()
    segmentation.reads.clear()
    return sdata, image, segmentation


def needed(image):
    """Chunks that hold a marker."""
    edges = np.cumsum([0, *image.chunks[0]])
    channels = {int(np.searchsorted(edges, c, side="right")) - 1 for c in (1, 2, 3)}
    return len(channels) * len(image.chunks[1]) * len(image.chunks[2])


def test_planning_and_failing_early_read_no_pixel(counted, score):
    sdata, image, segmentation = counted
    found = resolve_samples(sdata, image=None, labels=None, channels="auto", mpp=1.0)
    assert found.channels == ("CD3", "CD8", "CD20")
    for options in ({"channels": ["CD4"]}, {"mpp": None}, {"tile": 100}, {"device": "gpu"}, {"model": "x"}):
        with pytest.raises((InputError, KeyError)):
            score(sdata, **({"mpp": 1.0} | options))
    assert not image.reads
    assert not segmentation.reads


def test_the_scales_read_each_chunk_of_a_marker_once_and_no_labels(counted):
    sdata, image, segmentation = counted
    nb.pp.normalization(sdata, progress=False)
    assert set(image.reads.values()) == {1}
    assert len(image.reads) == needed(image)
    assert not segmentation.reads


def test_the_scores_read_each_chunk_once_when_one_tile_holds_the_image(counted, score):
    sdata, image, segmentation = counted
    score(sdata, mpp=1.0, normalization=FITTED)
    assert set(image.reads.values()) == set(segmentation.reads.values()) == {1}
    assert len(image.reads) == needed(image)
    assert len(segmentation.reads) == segmentation.n_chunks


def test_without_a_normalisation_each_chunk_is_read_twice(counted, score):
    sdata, image, segmentation = counted
    score(sdata, mpp=1.0)
    assert set(image.reads.values()) == {2}
    assert set(segmentation.reads.values()) == {1}


def test_integrated_expression_reads_each_chunk_once(counted):
    sdata, image, segmentation = counted
    nb.pp.integrated_expression(sdata, quantiles=[0.5], statistics=["mean", "max"], progress=False)
    assert set(image.reads.values()) == set(segmentation.reads.values()) == {1}
    assert len(image.reads) == image.n_chunks


def test_expanding_labels_reads_nothing_until_asked(counted):
    sdata, image, segmentation = counted
    nb.pp.expand_labels(sdata, "cells", distance=3.0, mpp=1.0)
    assert not segmentation.reads
    sdata["cells_expanded"].data.compute()
    assert set(segmentation.reads.values()) == {1}
    assert not image.reads
