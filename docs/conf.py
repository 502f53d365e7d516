"""Sphinx configuration; built with ``-W --keep-going``, so every warning is an error.

Two switches of the environment: ``NIMBUS_SD_DOCS_OFFLINE=1`` builds without fetching the inventories of other
projects, ``NIMBUS_SD_DOCS_EXECUTE=0`` without running the tutorials.
"""

import os
import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "nimbus-sd"
author = "The nimbus-sd developers"
copyright = author
release = version = installed("nimbus-sd")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "command_reference",
    "offline_references",
    "prose_docstrings",
    "recorded",
    "tutorial_pages",
]
exclude_patterns = ["_build", "_ext", "_templates", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
nitpicky = True
nitpick_ignore = [
    # made inside and handed on; nobody makes one
    ("py:class", "nimbus_sd.app._session.Session"),
    ("py:class", "nimbus_sd.pl._gate_panel.GatePanel"),
    ("py:class", "nimbus_sd._sdata.tile_format.TileSettings"),
    # a protocol of two lines, whose members the configurations on the page have
    ("py:class", "nimbus_sd.models.channelwise.ChannelwiseConfig"),
]
default_role = "literal"
smartquotes = False

# types stand beside the parameters; signatures then stay readable
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
autosummary_generate = True
# file systems that take "Normalization" and "normalization" for one name
autosummary_filename_map = {"nimbus_sd.pp.Normalization": "nimbus_sd.pp.Normalization-class"}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off" if os.environ.get("NIMBUS_SD_DOCS_EXECUTE") == "0" else "cache"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # of one cell, on a busy machine
nb_merge_streams = True

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

_INVENTORIES = {
    "python": "https://docs.python.org/3",
    "anndata": "https://anndata.readthedocs.io/en/stable",
    "dask": "https://docs.dask.org/en/stable",
    "distributed": "https://distributed.dask.org/en/stable",
    "matplotlib": "https://matplotlib.org/stable",
    "numpy": "https://numpy.org/doc/stable",
    "pandas": "https://pandas.pydata.org/docs",
    "scanpy": "https://scanpy.readthedocs.io/en/stable",
    "scipy": "https://docs.scipy.org/doc/scipy",
    "skimage": "https://scikit-image.org/docs/stable",
    "sklearn": "https://scikit-learn.org/stable",
    "spatialdata": "https://spatialdata.scverse.org/en/stable",
    "squidpy": "https://squidpy.readthedocs.io/en/stable",
    "torch": "https://docs.pytorch.org/docs/stable",
    "xarray": "https://docs.xarray.dev/en/stable",
    "zarr": "https://zarr.readthedocs.io/en/stable",
}
nimbus_other_packages = [*_INVENTORIES, "anywidget", "starlette"]
_OFFLINE = os.environ.get("NIMBUS_SD_DOCS_OFFLINE", "") not in ("", "0")
intersphinx_mapping = {} if _OFFLINE else {name: (url, None) for name, url in _INVENTORIES.items()}

html_theme = "sphinx_book_theme"
# what comes after the number in a development version is too long for the sidebar
html_title = f"nimbus-sd {release.partition('+')[0]}"
html_static_path = ["_static"]
html_css_files = ["nimbus.css"]
html_theme_options = {
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
