"""What a sub-typing network learns from, and whether that is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.supply import PatchSupply
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.engine.subtyping.validate import Validation, undefined


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
    check_classes(data.targets, data.validation.targets, data.markers)


def check_classes(
    targets: np.ndarray, judged: np.ndarray, markers: Sequence[str], *, fewest: int = 1, where: str = ""
) -> dict[str, str]:
    """Raise :class:`InputError` unless every marker can be learnt, and some be judged.

    Parameters
    ----------
    targets, judged
        ``(n, m)`` of the cells to train on and to validate with: 1, 0, NaN.
    markers
        Names of the m markers.
    fewest
        Cells of each class to train on.
    where
        What messages say of the cells' place, for instance ``" in section a"``.

    Returns
    -------
    Markers that can't be judged, and why.
    """
    few = []
    for marker, each in class_counts(targets, markers).items():
        if min(each.values()) < fewest:
            few.append(f"{marker} ({', '.join(f'{n} {what}' for what, n in each.items())})")
    if few:
        msg = (
            f"too few cells to train on for {', '.join(few)}{where}; at least {fewest} of each class are "
            "needed. Check their gates, add sections, or leave these markers out with markers="
        )
        raise InputError(msg)
    reasons = undefined(judged, markers)
    if len(reasons) == len(markers):
        told = "; ".join(f"{m}: {why}" for m, why in reasons.items())
        msg = f"no marker can be validated ({told}), so training would not know when to stop; see split="
        raise InputError(msg)
    return reasons


def class_counts(targets: np.ndarray, markers: Sequence[str]) -> dict[str, dict[str, int]]:
    """Positive and negative cells of each marker."""
    return {
        m: {"positive": int((column == 1).sum()), "negative": int((column == 0).sum())}
        for m, column in zip(markers, targets.T, strict=True)
    }
