"""The installed version, which provenance records."""

from importlib.metadata import version

__version__ = version("nimbus-sd")
