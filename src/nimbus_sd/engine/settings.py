"""How prediction runs, checked when it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import VIEWS


def view_names(views: int | Sequence[str]) -> tuple[str, ...]:
    """Names of test-time views: of 1 or all 8, or those given.

    Raises
    ------
    InputError
        For another number.
    """
    if isinstance(views, str):
        return (views,)
    if not isinstance(views, int):
        return tuple(views)
    if views not in (1, 8):
        msg = f"views={views}: as a number 1 (none) or 8 (all) is valid; or name some of {', '.join(VIEWS)}"
        raise InputError(msg)
    return tuple(VIEWS)[:views]


@dataclass(frozen=True)
class PredictConfig:
    """How to run; none of it but `views` and `precision` changes the scores.

    Parameters
    ----------
    views
        Test-time views to average, keys of :data:`nimbus_sd.arrays.VIEWS`.
    tile
        Side of a tile's core in model px; None takes the largest that memory allows.
    batch_size
        Inputs per forward pass; None finds it from memory.
    n_threads
        Reader threads per device.
    device, precision
        ``"auto"`` or a name; several devices share the blocks.
    per_view
        Keep the sums of every view, for the spread over them.
    intensity
        Sum raw intensities as well.
    memory
        Bytes that activations may take; None takes a third of what is free.
    compiled
        Let ``torch.compile`` rewrite the network, which costs a minute or more at the start.
    """

    views: tuple[str, ...] = ("identity",)
    tile: int | None = None
    batch_size: int | None = None
    n_threads: int = 2
    device: str | tuple[str, ...] = "auto"
    precision: str = "auto"
    per_view: bool = False
    intensity: bool = True
    memory: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        unknown = [v for v in self.views if v not in VIEWS]
        if unknown or not self.views or len(set(self.views)) < len(self.views):
            msg = f"views={self.views!r}: give each view once; valid: {', '.join(VIEWS)}"
            raise InputError(msg)
        if self.per_view and len(self.views) < 2:
            msg = "score_std needs at least two views; pass views=8"
            raise InputError(msg)
        check_limits(self)


class Limits(Protocol):
    """Settings that say what a run may take, and don't change its result."""

    @property
    def batch_size(self) -> int | None:
        """Inputs per forward pass."""
        ...

    @property
    def n_threads(self) -> int:
        """Reader threads per device."""
        ...

    @property
    def memory(self) -> int | None:
        """Bytes that activations may take."""
        ...


def check_limits(config: Limits) -> None:
    """Check `batch_size`, `n_threads`, `memory` and, where there is one, `tile`.

    Raises
    ------
    InputError
        Naming the one that is no whole number, or too small.
    """
    for name in ("tile", "batch_size", "n_threads", "memory"):
        value = getattr(config, name, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            msg = f"{name}={value!r} must be a whole number"
            raise InputError(msg)
    if config.batch_size is not None and config.batch_size < 1:
        msg = f"batch_size={config.batch_size} must be at least 1, or None to find it from memory"
        raise InputError(msg)
    if config.memory is not None and config.memory < 1 << 20:
        msg = f"memory={config.memory} bytes is too little to run in; give at least 1048576, or None"
        raise InputError(msg)
    if config.n_threads < 0:
        msg = f"n_threads={config.n_threads} must be 0 (read in the main thread) or more"
        raise InputError(msg)
