"""The columns of the cell table in CSV that are not channels."""

from __future__ import annotations

LABEL, FOV = "label", "fov"
AREA_PX, AREA_UM2 = "area_px", "area_um2"
POSITION = ("x", "y")
RESERVED = (LABEL, FOV, AREA_PX, AREA_UM2, *POSITION)
SUFFIX = "_labels"
