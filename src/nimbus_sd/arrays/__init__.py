"""Pure array kernels: intensity quantiles, masks, rescaling, tiling, symmetry, per-label reduction."""

from nimbus_sd.arrays.dihedral import VIEWS, apply_view, invert_view
from nimbus_sd.arrays.intensity import RELATIVE_ERROR, IntensityHistogram, check_pixels
from nimbus_sd.arrays.mask import interior_mask
from nimbus_sd.arrays.reduce import LabelIndex, Partials, merge_partials
from nimbus_sd.arrays.rescale import AxisMap, resample_axis, scale_factor
from nimbus_sd.arrays.tiling import Interval, Tile, TilePlan, plan_tiles

__all__ = [
    "RELATIVE_ERROR",
    "VIEWS",
    "AxisMap",
    "IntensityHistogram",
    "Interval",
    "LabelIndex",
    "Partials",
    "Tile",
    "TilePlan",
    "apply_view",
    "check_pixels",
    "interior_mask",
    "invert_view",
    "merge_partials",
    "plan_tiles",
    "resample_axis",
    "scale_factor",
]
