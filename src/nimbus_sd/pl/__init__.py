"""Plots of images, scores and clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.pl._attribution import attribution
    from nimbus_sd.pl._cell_gallery import cell_gallery
    from nimbus_sd.pl._coexpression import coexpression
    from nimbus_sd.pl._confounders import confounders
    from nimbus_sd.pl._evaluation import evaluation
    from nimbus_sd.pl._gate import gate
    from nimbus_sd.pl._gate_editor import GateEditor
    from nimbus_sd.pl._image import image
    from nimbus_sd.pl._marker_heatmap import marker_heatmap
    from nimbus_sd.pl._marker_umap import marker_umap
    from nimbus_sd.pl._normalization import normalization
    from nimbus_sd.pl._overlay import overlay
    from nimbus_sd.pl._positive_fraction import positive_fraction
    from nimbus_sd.pl._rediscovery import rediscovery
    from nimbus_sd.pl._registration import registration
    from nimbus_sd.pl._reliability import reliability
    from nimbus_sd.pl._score_distribution import score_distribution
    from nimbus_sd.pl._silver_check import silver_check
    from nimbus_sd.pl._som import som
    from nimbus_sd.pl._spatial_map import spatial_map
    from nimbus_sd.pl._subtypes import subtypes

__all__ = [
    "GateEditor",
    "attribution",
    "cell_gallery",
    "coexpression",
    "confounders",
    "evaluation",
    "gate",
    "image",
    "marker_heatmap",
    "marker_umap",
    "normalization",
    "overlay",
    "positive_fraction",
    "rediscovery",
    "registration",
    "reliability",
    "score_distribution",
    "silver_check",
    "som",
    "spatial_map",
    "subtypes",
]

# a file named as its function would shadow it: importing a submodule sets it as the package's attribute
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "GateEditor": "_gate_editor",
        "attribution": "_attribution",
        "cell_gallery": "_cell_gallery",
        "coexpression": "_coexpression",
        "confounders": "_confounders",
        "evaluation": "_evaluation",
        "gate": "_gate",
        "image": "_image",
        "marker_heatmap": "_marker_heatmap",
        "marker_umap": "_marker_umap",
        "normalization": "_normalization",
        "overlay": "_overlay",
        "positive_fraction": "_positive_fraction",
        "rediscovery": "_rediscovery",
        "registration": "_registration",
        "reliability": "_reliability",
        "score_distribution": "_score_distribution",
        "silver_check": "_silver_check",
        "som": "_som",
        "spatial_map": "_spatial_map",
        "subtypes": "_subtypes",
    },
)
