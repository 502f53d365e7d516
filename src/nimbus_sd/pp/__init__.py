"""Preprocessing: normalisation, integrated expression, labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.pp._cell_patches import CellPatches, cell_patches
    from nimbus_sd.pp._compensate import compensate
    from nimbus_sd.pp._curate_hierarchy import curate_hierarchy
    from nimbus_sd.pp._detect_nuclei import detect_nuclei
    from nimbus_sd.pp._expand_labels import expand_labels
    from nimbus_sd.pp._gate import gate
    from nimbus_sd.pp._integrated_expression import integrated_expression
    from nimbus_sd.pp._normalization import Normalization, normalization
    from nimbus_sd.pp._register_landmarks import register_landmarks
    from nimbus_sd.pp._registration_qc import registration_qc
    from nimbus_sd.pp._remove_background import remove_background
    from nimbus_sd.pp._sample_cells import sample_cells
    from nimbus_sd.pp._silver_labels import silver_labels
    from nimbus_sd.pp._suggest_thresholds import suggest_thresholds
    from nimbus_sd.pp._training_tiles import TileStore, training_tiles
    from nimbus_sd.pp._transform_scores import transform_scores

__all__ = [
    "CellPatches",
    "Normalization",
    "TileStore",
    "cell_patches",
    "compensate",
    "curate_hierarchy",
    "detect_nuclei",
    "expand_labels",
    "gate",
    "integrated_expression",
    "normalization",
    "register_landmarks",
    "registration_qc",
    "remove_background",
    "sample_cells",
    "silver_labels",
    "suggest_thresholds",
    "training_tiles",
    "transform_scores",
]

# a file named as its function would shadow it: importing a submodule sets it as the package's attribute
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CellPatches": "_cell_patches",
        "Normalization": "_normalization",
        "TileStore": "_training_tiles",
        "cell_patches": "_cell_patches",
        "compensate": "_compensate",
        "curate_hierarchy": "_curate_hierarchy",
        "detect_nuclei": "_detect_nuclei",
        "expand_labels": "_expand_labels",
        "gate": "_gate",
        "integrated_expression": "_integrated_expression",
        "normalization": "_normalization",
        "register_landmarks": "_register_landmarks",
        "registration_qc": "_registration_qc",
        "remove_background": "_remove_background",
        "sample_cells": "_sample_cells",
        "silver_labels": "_silver_labels",
        "suggest_thresholds": "_suggest_thresholds",
        "training_tiles": "_training_tiles",
        "transform_scores": "_transform_scores",
    },
)
