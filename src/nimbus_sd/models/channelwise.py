"""What networks share whose features belong to one marker each until the last layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError

_KNEE = 1e-3  # of pooled features, where their square root gives way to a line through 0


class ChannelwiseConfig(Protocol):
    """What every such architecture tells."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Names of the input's channels."""
        ...

    @property
    def embedding(self) -> int:
        """Length of the embedding."""
        ...

    @property
    def features(self) -> int:
        """Features per marker in the interpretability stage."""
        ...

    @property
    def min_size(self) -> int:
        """Smallest side of an input in px."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The parameters, in JSON's types."""
        ...


class ChannelwiseNet(nn.Module, ABC):
    """Patches to features of single markers (``activations``), and these to an embedding (``mix``).

    Parameters
    ----------
    config
        The architecture; subclasses give :meth:`pooled`.
    """

    def __init__(self, config: ChannelwiseConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.last = nn.Linear(len(config.markers) * config.features, config.embedding)

    @abstractmethod
    def pooled(self, x: Tensor) -> Tensor:
        """``(b, c, y, x)`` to ``(b, c, features)``, each from its own channel."""

    def activations(self, x: Tensor) -> Tensor:
        """Interpretability stage: what each marker adds to an empty channel.

        Parameters
        ----------
        x
            Patches ``(b, c, y, x)``, any sides from ``config.min_size`` px; 0 is no signal.

        Returns
        -------
        ``(b, c, features)``: the pooled features less those of an all-zero channel, so that a
        channel without signal gives 0; of the difference d, d / sqrt(abs(d) + 0.001), near enough
        its square root with its sign: between faint and empty lies more than between bright and
        brighter. Features of one marker depend on its channel alone.

        Raises
        ------
        InputError
            If the number of channels is not that of the markers, or the patch is too small.
        """
        self._check(x)
        both = self.pooled(torch.cat([x, torch.zeros_like(x[:1])]))
        added = both[:-1] - both[-1:]
        return added / (added.abs() + _KNEE).sqrt()

    def mix(self, activations: Tensor) -> Tensor:
        """``(b, c, features)`` to the embedding ``(b, embedding)``: the one layer where markers meet."""
        embedded: Tensor = self.last(activations.flatten(1))
        return embedded

    def forward(self, x: Tensor) -> Tensor:
        """Patches ``(b, c, y, x)`` to embeddings ``(b, embedding)``."""
        return self.mix(self.activations(x))

    def _check(self, x: Tensor) -> None:
        n, least = len(self.config.markers), self.config.min_size
        if x.ndim != 4 or x.shape[1] != n:
            msg = f"input of shape {tuple(x.shape)}; valid: (b, {n}, y, x), a channel for each of the markers"
            raise InputError(msg)
        if min(x.shape[-2:]) < least:
            msg = f"patches of {tuple(x.shape[-2:])} px are too small; at least {least} px a side"
            raise InputError(msg)


def magnitude(activations: Tensor) -> Tensor:
    """Activation of each marker: mean over its features of the absolute values, ``(b, c)``, ≥ 0."""
    return activations.abs().mean(dim=-1)


def check_markers(markers: Sequence[str]) -> tuple[str, ...]:
    """Marker names as a tuple.

    Raises
    ------
    InputError
        If there are none, one comes twice, or one is no string.
    """
    names = () if isinstance(markers, str) else tuple(markers)
    if not names or len(set(names)) < len(names) or not all(isinstance(m, str) for m in names):
        msg = f"markers={markers!r}: give at least one name, and each once, for instance ('CD3', 'CD8')"
        raise InputError(msg)
    return names


def check_numbers(config: Any, *names: str) -> None:
    """Raise :class:`InputError` unless the named parameters are whole numbers from 1."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            msg = f"{name}={value!r} must be a whole number, at least 1"
            raise InputError(msg)
