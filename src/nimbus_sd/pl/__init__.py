"""Plots of images, scores and clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.pl._confounders import confounders
    from nimbus_sd.pl._evaluation import evaluation
    from nimbus_sd.pl._image import image
    from nimbus_sd.pl._marker_heatmap import marker_heatmap
    from nimbus_sd.pl._reliability import reliability
    from nimbus_sd.pl._score_distribution import score_distribution
    from nimbus_sd.pl._silver_check import silver_check

__all__ = [
    "confounders",
    "evaluation",
    "image",
    "marker_heatmap",
    "reliability",
    "score_distribution",
    "silver_check",
]

# a file named as its function would shadow it: importing a submodule sets it as the package's attribute
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "confounders": "_confounders",
        "evaluation": "_evaluation",
        "image": "_image",
        "marker_heatmap": "_marker_heatmap",
        "reliability": "_reliability",
        "score_distribution": "_score_distribution",
        "silver_check": "_silver_check",
    },
)
