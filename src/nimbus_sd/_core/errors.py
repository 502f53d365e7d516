"""The errors users see: each says what, where, what would be valid and what to do."""

from __future__ import annotations


class NimbusError(Exception):
    """Base of every error that nimbus_sd raises on purpose."""


class InputError(NimbusError, ValueError):
    """An image, labels element, table or argument that can't be used as given."""


class ElementNotFoundError(NimbusError, KeyError):
    """A name that is not in the object; the message lists the names that are."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ChannelNotFoundError(ElementNotFoundError):
    """Channels that an image does not have."""


class WeightsError(NimbusError, ValueError):
    """Weights whose hash, keys, shapes or card don't fit."""


class OfflineError(NimbusError, OSError):
    """Weights that have to be downloaded, and no network to do it with."""


class MissingExtraError(NimbusError, ImportError):
    """A feature whose optional dependency is not installed."""


class OutOfMemoryError(InputError, MemoryError):
    """A tile too large for a device's memory, even with one marker at a time."""


class ClusterError(NimbusError, RuntimeError):
    """Workers that are not there, or that died of a block; what was finished is kept."""


class DataError(NimbusError, OSError):
    """Pixels or labels that are in the store and can't be read; the message names where."""


class NimbusWarning(UserWarning):
    """Something legal that the user probably wants to know."""
