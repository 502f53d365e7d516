"""Readers and writers: folders of images, cell tables in CSV, tables in a zarr store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.io._open_store import open_store
    from nimbus_sd.io._read_cell_table import read_cell_table
    from nimbus_sd.io._read_fovs import read_fovs
    from nimbus_sd.io._read_orion import read_orion
    from nimbus_sd.io._read_pan_multiplex import read_pan_multiplex
    from nimbus_sd.io._read_spillover import read_spillover
    from nimbus_sd.io._write_cell_table import write_cell_table
    from nimbus_sd.io._write_cluster_mapping import write_cluster_mapping
    from nimbus_sd.io._write_table import write_table
    from nimbus_sd.io._write_vitessce import write_vitessce

__all__ = [
    "open_store",
    "read_cell_table",
    "read_fovs",
    "read_orion",
    "read_pan_multiplex",
    "read_spillover",
    "write_cell_table",
    "write_cluster_mapping",
    "write_table",
    "write_vitessce",
]

# A file named as its function would shadow it: importing a submodule sets it as the package's attribute.
__getattr__, __dir__ = lazy_exports(__name__, {name: f"_{name}" for name in __all__})
