"""The installed version, which provenance records."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nimbus-sd")
except PackageNotFoundError:  # run from a checkout, on a machine where nothing can be installed
    __version__ = "0+unknown"
