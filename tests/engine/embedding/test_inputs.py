"""Normalised inputs: clip(x / scale, 0, 1), then the transform, in every dtype."""

import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.inputs import normalise

SCALE = np.array([3.0, 70.5, 1000.0])


def expected(raw, scale, transform):
    x = np.clip(raw.astype(np.float64) / scale[:, None, None], 0, 1)
    return np.sqrt(x) if transform == "sqrt" else x


@pytest.mark.parametrize("transform", ["identity", "sqrt"])
@pytest.mark.parametrize(
    "dtype",
    ["uint8", "uint16", "uint32", "uint64", "int16", "int64", "float16", "float32", "float64", "bool"],
)
def test_every_dtype(dtype, transform, rng):
    raw = rng.integers(0, 120, (300, 3, 9, 7)).astype(dtype)
    found = normalise(raw, SCALE, transform)
    assert (found.dtype, found.shape) == (torch.float32, raw.shape)
    np.testing.assert_allclose(found.numpy(), expected(raw, SCALE, transform), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "values", "scale"),
    [
        ("uint32", [0, 2**32 - 1, 2**31], 2.0**32),
        ("float64", [0.0, 1e300, 5e299], 1e300),
        ("float64", [0.0, 1e-300, 5e-301], 1e-300),
        ("float32", [0.0, 3e38, 1e38], 1e38),
        ("float32", [0.0, 1e-30, 1e-38], 1e-38),
    ],
)
def test_extreme_intensities(dtype, values, scale):
    raw = np.array(values, dtype).reshape(1, 1, 1, 3)
    found = normalise(raw, np.array([scale]), "identity").flatten().numpy()
    np.testing.assert_allclose(found, np.clip(np.array(values) / scale, 0, 1), rtol=1e-5)


def test_tensors_and_layouts_are_kept(rng):
    raw = torch.from_numpy(rng.integers(0, 120, (20, 3, 8, 8)).astype("uint16"))
    there = raw.contiguous(memory_format=torch.channels_last)
    found = normalise(there, torch.from_numpy(SCALE), "sqrt")
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, normalise(raw, SCALE, "sqrt"))
    out = torch.full(raw.shape, -1.0)
    assert normalise(raw, SCALE, "sqrt", out=out) is out
    torch.testing.assert_close(out, found)


def test_the_input_is_not_changed(rng):
    raw = rng.random((4, 3, 5, 5)).astype("float32") * 100
    before = raw.copy()
    normalise(raw, SCALE, "sqrt")
    np.testing.assert_array_equal(raw, before)


def test_no_patches():
    assert normalise(np.empty((0, 3, 4, 4), "uint8"), SCALE, "sqrt").shape == (0, 3, 4, 4)


def test_wrong_arguments_say_what_is_valid():
    raw = np.zeros((2, 3, 4, 4), "uint8")
    with pytest.raises(InputError, match="transform='log'; valid: identity, sqrt"):
        normalise(raw, SCALE, "log")
    with pytest.raises(InputError, match="a scale for each channel"):
        normalise(raw, SCALE[:2], "sqrt")
    with pytest.raises(InputError, match="a scale for each channel"):
        normalise(raw[0], SCALE, "sqrt")
