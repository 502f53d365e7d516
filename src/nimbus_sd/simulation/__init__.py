"""Tissue simulator: seeds in, arrays out, truth known (NumPy and SciPy only)."""

from nimbus_sd.simulation.config import (
    CELL_TYPES,
    PLATFORMS,
    Marker,
    PlatformConfig,
    SegmentationConfig,
    TissueConfig,
)
from nimbus_sd.simulation.dataset import Dataset, simulate_dataset
from nimbus_sd.simulation.field import Field, FieldConfig, simulate_field
from nimbus_sd.simulation.he_stain import Stain, random_stain, vary_stain
from nimbus_sd.simulation.panel import PANEL, panel, random_marker
from nimbus_sd.simulation.sample import (
    Samples,
    random_platform,
    random_segmentation,
    random_tissue,
    simulate_samples,
)
from nimbus_sd.simulation.section import SECTION_PANEL, Section, SectionConfig, simulate_section
from nimbus_sd.simulation.warp import Placement

__all__ = [
    "CELL_TYPES",
    "PANEL",
    "PLATFORMS",
    "SECTION_PANEL",
    "Dataset",
    "Field",
    "FieldConfig",
    "Marker",
    "Placement",
    "PlatformConfig",
    "Samples",
    "Section",
    "SectionConfig",
    "SegmentationConfig",
    "Stain",
    "TissueConfig",
    "panel",
    "random_marker",
    "random_platform",
    "random_segmentation",
    "random_stain",
    "random_tissue",
    "simulate_dataset",
    "simulate_field",
    "simulate_samples",
    "simulate_section",
    "vary_stain",
]
