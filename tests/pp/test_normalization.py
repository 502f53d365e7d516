"""``nb.pp.normalization`` on objects: the numbers are tested with the engine."""

import numpy as np
import pytest

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning


def test_over_all_fields(factory):
    sdata = factory(2, channels=("DAPI", "CD3", "CD8"), mpp=None)
    fitted = nb.pp.normalization(sdata, quantile=0.99, progress=False)
    assert isinstance(fitted, nb.pp.Normalization)
    assert fitted.channels == ("CD3", "CD8")
    assert fitted.fitted_on == ("fov0_image", "fov1_image")
    pixels = np.stack([np.asarray(sdata[f"fov{i}_image"].data) for i in range(2)], axis=1).reshape(3, -1)
    np.testing.assert_allclose(fitted.scale, np.quantile(pixels[1:].astype(float), 0.99, axis=1))
    assert nb.pp.normalization(sdata, channels="all", progress=False).channels == ("DAPI", "CD3", "CD8")


def test_an_image_with_two_segmentations_counts_once(sdata):
    one = nb.pp.normalization(sdata, progress=False)
    nb.pp.expand_labels(sdata, "fov0_labels", distance=1.0)
    two = nb.pp.normalization(sdata, progress=False)
    assert two == one


def test_the_rule_of_the_published_tool(factory):
    sdata = factory(2)
    fitted = nb.pp.normalization(sdata, rule="fov_mean", quantile=0.999, progress=False)
    images = [np.asarray(sdata[f"fov{i}_image"].data) for i in range(2)]
    expected = [np.mean([np.quantile(a[c][a[c] > 0].astype(float), 0.999) for a in images]) for c in range(3)]
    np.testing.assert_allclose(fitted.scale, expected)


@pytest.mark.parametrize(("value", "flag"), [(0, "empty"), (255, "saturated")])
def test_flagged_channels_are_named_in_a_warning(factory, value, flag):
    sdata = factory(dtype="uint8")
    image = np.asarray(sdata["fov0_image"].data).copy()
    image[1] = value
    sdata["fov0_image"].data = image
    with pytest.warns(NimbusWarning, match=f"{flag} channels: CD8 "):
        fitted = nb.pp.normalization(sdata, channels=["CD3", "CD8"], progress=False)
    assert fitted.flags[1] == flag


def test_errors_change_nothing(factory, unchanged):
    sdata = factory(2)
    for options, error, said in [
        ({"channels": ["CD99"]}, ElementNotFoundError, r"\['CD99'\]; valid: CD3"),
        ({"quantile": 0.0}, InputError, r"quantile=0\.0"),
        ({"rule": "max"}, InputError, "fov_mean"),
        ({"labels": "cells"}, ElementNotFoundError, "'fov0_labels'"),
        ({"image": "cells"}, ElementNotFoundError, "'fov0_image'"),
    ]:
        with unchanged(sdata), pytest.raises(error, match=said):
            nb.pp.normalization(sdata, progress=False, **options)
