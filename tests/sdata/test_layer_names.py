"""Names of layers, and what an object without labels is told."""

import geopandas as gpd
import pytest
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import ShapesModel

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.layer_names import layer_names
from nimbus_sd._sdata.resolve import resolve_pairs


def test_x_is_no_layer_by_name(score, sdata):
    table = score(sdata)
    table.layers["raw"] = table.X
    assert "raw" in layer_names(table.layers)
    assert layer_names([None, "b", "a"]) == ["b", "a"]


def test_shapes_without_labels_are_told_how_to_become_some():
    cells = gpd.GeoDataFrame({"geometry": [Point(5, 5).buffer(3)]}, index=["one"])
    only = SpatialData.init_from_elements({"outlines": ShapesModel.parse(cells)})
    with pytest.raises(InputError, match=r"no labels.*shapes \('outlines'\) with spatialdata\.rasterize"):
        resolve_pairs(only)
    with pytest.raises(InputError, match=r"no labels; add a segmentation.*parse\(\.\.\.\)$"):
        resolve_pairs(SpatialData())
