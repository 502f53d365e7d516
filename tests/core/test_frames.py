"""A warning names the line of the user's program, whatever lies between."""

import warnings

import numpy as np
import pytest

import nimbus_sd as nb
from nimbus_sd._core.errors import NimbusWarning
from nimbus_sd._core.frames import user_stacklevel


def test_called_from_outside_it_is_the_line_itself():
    assert user_stacklevel() == 1


def test_our_own_frames_are_passed_over():
    ours = {"__name__": "nimbus_sd.somewhere", "level": user_stacklevel, "warn": warnings.warn}
    exec("def inner():\n    warn('look', stacklevel=level())\ndef outer():\n    inner()", ours)  # noqa: S102
    with pytest.warns(UserWarning, match="look") as seen:
        ours["outer"]()
    assert seen[0].filename == __file__


def test_the_first_warning_of_a_prediction_names_the_callers_file():
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(96, 96), channels=["CD45"])
    image = sdata["fov0_image"]
    image.data = np.where(image.values > np.quantile(image.values, 0.99), 255, image.values)
    with pytest.warns(NimbusWarning, match="saturated channels: CD45") as seen:
        nb.tl.predict(sdata, progress=False)
    assert seen[0].filename == __file__
