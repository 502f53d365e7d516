"""How well a sub-typing network tells cells apart that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nimbus_sd.arrays.evaluation import evaluate_scores
from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.embedding.dataset import PatchStream
from nimbus_sd.engine.subtyping.inputs import prepare

#: What is told of each marker, and the mean of it.
KINDS = ("auroc", "balanced_accuracy")
_PIECE = 128  # patches per forward pass


class NumberedPatches(Protocol):
    """Patches to go through once, in any order."""

    def __len__(self) -> int:
        """Cells."""
        ...

    def numbered(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows int64 ``(b,)`` and raw patches ``(b, 3, S, S)``; every row once."""
        ...


@dataclass(frozen=True)
class PatchArray:
    """Patches in memory."""

    patches: np.ndarray

    def __len__(self) -> int:
        return len(self.patches)

    def numbered(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :class:`NumberedPatches`."""
        for start in range(0, len(self), batch_size):
            rows = np.arange(start, min(start + batch_size, len(self)))
            yield rows, self.patches[start : start + batch_size]


@dataclass(frozen=True)
class Validation:
    """Cells that judge.

    Parameters
    ----------
    patches
        Raw.
    targets
        ``(n, m)``: 1, 0, NaN.
    """

    patches: NumberedPatches | PatchStream
    targets: np.ndarray

    def reasons(self, markers: Sequence[str]) -> dict[str, str]:
        """Markers whose AUROC is not defined, and why."""
        return undefined(self.targets, markers)


def undefined(targets: np.ndarray, markers: Sequence[str]) -> dict[str, str]:
    """Markers of which cells ``(n, m)`` lack a class, so that their AUROC is not defined, and why."""
    out = {}
    for marker, column in zip(markers, targets.T, strict=True):
        missing = [w for w, v in (("positive", 1), ("negative", 0)) if not (column == v).any()]
        if missing:
            out[marker] = f"no {' and no '.join(missing)} cell to validate with"
    return out


@torch.no_grad()
def probabilities(
    net: nn.Module,
    patches: NumberedPatches | PatchStream,
    n_markers: int,
    *,
    patch: int,
    device: torch.device,
    precision: str = "float32",
) -> np.ndarray:
    """Probability of every cell and marker, float32 ``(n, m)``; the network is left in eval mode."""
    net.eval()
    out = np.full((len(patches), n_markers), np.nan, np.float32)
    kind = PRECISIONS[precision]
    for rows, raw in patches.numbered(_PIECE):
        x = prepare(torch.from_numpy(raw).to(device), patch).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, kind, enabled=kind != torch.float32):
            logits: Tensor = net(x)
        out[rows] = torch.sigmoid(logits.float()).cpu().numpy()
    return out


def judge(
    targets: np.ndarray, scores: np.ndarray, markers: Sequence[str], *, threshold: float
) -> dict[str, float]:
    """AUROC and balanced accuracy of each marker, and the mean of what is defined.

    Parameters
    ----------
    targets
        ``(n, m)``: 1, 0, NaN.
    scores
        ``(n, m)`` probabilities.
    markers
        Their names.
    threshold
        Where calls are made for the balanced accuracy.

    Returns
    -------
    ``"auroc"``, ``"balanced_accuracy"`` (means over the markers), then ``"auroc <marker>"`` and
    so on; NaN where one class is missing.
    """
    found: dict[str, float] = {}
    for i, marker in enumerate(markers):
        rates, _ = evaluate_scores(targets[:, i], scores[:, i], threshold=threshold)
        found |= {f"{kind} {marker}": rates[kind] for kind in KINDS}
    return {**means(found), **found}


def means(found: Mapping[str, float]) -> dict[str, float]:
    """Mean over the markers of each kind of figure, where it is defined."""
    out = {}
    for kind in KINDS:
        values = np.array([v for k, v in found.items() if k.startswith(f"{kind} ")])
        known = values[~np.isnan(values)]
        out[kind] = float(known.mean()) if len(known) else float("nan")
    return out
