"""Plots of images, scores and clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.pl.image import image
    from nimbus_sd.pl.marker_heatmap import marker_heatmap
    from nimbus_sd.pl.score_distribution import score_distribution

__all__ = ["image", "marker_heatmap", "score_distribution"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {"image": "image", "marker_heatmap": "marker_heatmap", "score_distribution": "score_distribution"},
)
