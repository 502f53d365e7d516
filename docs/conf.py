"""Sphinx configuration; built with -W, so every warning is an error."""

from importlib.metadata import version as installed

project = "nimbus-sd"
author = "The nimbus-sd developers"
release = version = installed("nimbus-sd")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "none"
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
exclude_patterns = ["_build"]
