"""What a sub-typing network learns from, and whether that is enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.supply import PatchSupply
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.engine.subtyping.validate import Validation


@dataclass(frozen=True)
class SubtypeData:
    """What a run learns from.

    Parameters
    ----------
    supply
        Raw training patches; its batch is a whole step's.
    targets
        ``(n, m)`` of the training cells in the supply's numbering: 1, 0, NaN.
    markers
        Names of the m markers.
    validation
        Cells that judge.
    told
        What identifies the data, to notice that a resumed run has other.
    """

    supply: PatchSupply
    targets: np.ndarray
    markers: tuple[str, ...]
    validation: Validation
    told: Mapping[str, str | int] = field(default_factory=dict)


def check_data(data: SubtypeData, config: SubtypeTrainConfig) -> None:
    """Raise :class:`InputError` unless a step can be filled, and every marker learnt and some judged."""
    n = len(data.supply)
    if n < config.effective_batch:
        msg = (
            f"{n} cells to train on, fewer than the {config.batch} x {config.accumulation} of a step; take a "
            "smaller batch_size= or accumulation=, or more cells"
        )
        raise InputError(msg)
    for marker, column in zip(data.markers, data.targets.T, strict=True):
        counts = {what: int((column == value).sum()) for what, value in (("positive", 1), ("negative", 0))}
        if not all(counts.values()):
            told = ", ".join(f"{v} {k}" for k, v in counts.items())
            msg = f"{marker}: {told} cells to train on; both are needed. Leave it out with markers="
            raise InputError(msg)
    undefined = data.validation.reasons(data.markers)
    if len(undefined) == len(data.markers):
        told = "; ".join(f"{m}: {why}" for m, why in undefined.items())
        msg = f"no marker can be validated ({told}), so training would not know when to stop"
        raise InputError(msg)
