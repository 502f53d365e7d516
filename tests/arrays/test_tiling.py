"""Tile plans: every pixel is kept by one tile, owned by one tile, and read by it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import plan_tiles
from nimbus_sd.testing import strategies

FACTORS = st.sampled_from([0.5, 1.0, 1.5, 1.538, 2.0, 3.0])
PLANS = st.builds(
    lambda shape, factor, tile, halo: plan_tiles(shape, factor=factor, tile=16 * tile, halo=halo),
    strategies.shapes(1, 200),
    FACTORS,
    st.integers(1, 6),
    st.sampled_from([0, 7, 16, 32, 96]),
)


@given(PLANS)
def test_cores_tile_the_padded_image_and_owned_pixels_the_image(plan):
    kept = np.zeros((plan.y.model_size, plan.x.model_size), int)
    owned = np.zeros((plan.y.size, plan.x.size), int)
    for i, tile in enumerate(plan):
        assert tile == plan[i]
        assert tile.index == i
        kept[tile.core[0].slice, tile.core[1].slice] += 1
        owned[tile.owned[0].slice, tile.owned[1].slice] += 1
    assert (kept == 1).all()
    assert (owned == 1).all()
    assert len(plan) == plan.grid[0] * plan.grid[1]


@given(PLANS)
def test_tiles_are_aligned_and_clipped_at_the_image(plan):
    for tile in plan:
        for axis, core, outer in zip((plan.y, plan.x), tile.core, tile.outer, strict=True):
            assert outer.start % 16 == outer.stop % 16 == 0
            assert outer.start == max(core.start - plan.halo, 0)
            assert outer.stop == min(core.stop + plan.halo, axis.model_size)
        assert tile.outer_shape == (tile.outer[0].size, tile.outer[1].size)


@given(PLANS)
def test_a_tile_reads_all_that_it_samples_within_the_image(plan):
    for tile in plan:
        for axis, outer, read, owned in zip((plan.y, plan.x), tile.outer, tile.read, tile.owned, strict=True):
            lower, upper, _ = axis.linear(outer.start, outer.stop)
            touched = np.concatenate([lower, upper, axis.nearest(outer.start, outer.stop)])
            assert 0 <= read.start <= touched.min()
            assert touched.max() < read.stop <= axis.size
            if owned.size:
                assert read.start <= owned.start
                assert owned.stop <= read.stop


@given(PLANS)
def test_stitch_after_tile_is_the_identity(plan):
    shape = plan.y.model_size, plan.x.model_size
    image = np.arange(np.prod(shape)).reshape(shape)
    out = np.zeros_like(image)
    full = np.zeros((plan.y.size, plan.x.size), int)
    for tile in plan:
        seen = image[tile.outer[0].slice, tile.outer[1].slice]
        core = seen[tile.kept]
        out[tile.core[0].slice, tile.core[1].slice] = core
        y, x = (
            axis.model_index(o.start, o.stop) - c.start
            for axis, o, c in zip((plan.y, plan.x), tile.owned, tile.core, strict=True)
        )
        full[tile.owned[0].slice, tile.owned[1].slice] = core[np.ix_(y, x)]
    np.testing.assert_array_equal(out, image)
    whole = np.ix_(plan.y.model_index(0, plan.y.size), plan.x.model_index(0, plan.x.size))
    np.testing.assert_array_equal(full, image[whole])


def test_the_work_of_the_halo():
    plan = plan_tiles((512 * 9, 512 * 9), factor=1.0, tile=512)
    middle = plan[40]
    assert middle.outer_shape == (704, 704)
    assert plan.halo_ratio == pytest.approx((9 * 512 + 16 * 96) ** 2 / (9 * 512) ** 2)


@pytest.mark.parametrize(("tile", "instead"), [(100, 96), (0, 16), (-16, 16), (17, 16), (8, 16)])
def test_a_tile_off_the_stride_names_a_valid_one(tile, instead):
    with pytest.raises(InputError, match=rf"tile={tile}\b.*instance {instead}$"):
        plan_tiles((64, 64), factor=1.0, tile=tile)


def test_deep_networks_get_two_pixels_at_their_bottleneck():
    plan = plan_tiles((5, 5), factor=1.0, tile=64, stride=64)
    assert plan[0].outer_shape == (128, 128)


def test_tiles_outside_the_plan_do_not_exist():
    plan = plan_tiles((40, 40), factor=1.0, tile=16)
    with pytest.raises(IndexError):
        plan[len(plan)]
    with pytest.raises(IndexError):
        plan[-1]
