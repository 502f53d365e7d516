"""The table of sub-types: a probability per marker, what is positive, and where both came from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._core.hierarchy import check_tree
from nimbus_sd._sdata.center_table import center_table, record_of, stacked, with_cells
from nimbus_sd._sdata.centers import CenterSample, CenterSet
from nimbus_sd._sdata.identity import weights_digest
from nimbus_sd._sdata.subtype_run import Predicted
from nimbus_sd.arrays.hierarchy import curate, rules
from nimbus_sd.engine.subtyping.run import SubtypeRunner
from nimbus_sd.models.subtyper import SubtypeCard

UNS = "nimbus_subtypes"
POSITIVE = "positive"
_MANY = 0.5  # of the cells


@dataclass(frozen=True)
class Decision:
    """From probabilities to labels.

    Attributes
    ----------
    thresholds
        Per marker: a cell is positive above this probability, ``(m,)``.
    tree
        Child to parent; empty for no hierarchy.
    """

    thresholds: np.ndarray
    tree: Mapping[str, str]

    def labels(self, probability: np.ndarray, markers: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """1, 0, or NaN where a cell contradicts the tree, float32 ``(n, m)``; and which rules it breaks."""
        positive = (probability > self.thresholds).astype(np.float32)
        return curate(positive, markers, tree=self.tree)


def decision_for(
    card: SubtypeCard,
    *,
    hierarchy: bool | Mapping[str, str],
    thresholds: float | Mapping[str, float] | None,
) -> Decision:
    """Thresholds and tree as they were asked for, else the card's.

    Raises
    ------
    InputError
        If a marker is unknown, a threshold is no probability, or the tree runs in a circle.
    """
    if isinstance(hierarchy, bool):
        tree = dict(card.hierarchy) if hierarchy else {}
    else:
        tree = check_tree(hierarchy, card.markers, where=f"model {card.name!r}")
    if thresholds is None or isinstance(thresholds, Mapping):
        given = dict(thresholds or {})
    else:
        given = dict.fromkeys(card.markers, thresholds)
    unknown = [m for m in given if m not in card.markers]
    if unknown:
        msg = (
            f"thresholds= names {unknown}, which model {card.name!r} does not predict; "
            f"valid: {', '.join(card.markers)}"
        )
        raise InputError(msg)
    for marker, value in given.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not (number and 0 <= value <= 1):
            msg = f"threshold {value!r} of {marker!r} must be a probability, from 0 to 1"
            raise InputError(msg)
    each = [given.get(m, card.thresholds.get(m, 0.5)) for m in card.markers]
    return Decision(np.array(each, np.float64), tree)


def subtype_table(
    centers: CenterSet, which: slice, outcome: Predicted, runner: SubtypeRunner, *, decision: Decision
) -> ad.AnnData:
    """Build the annotating table of one object's samples.

    Parameters
    ----------
    centers
        Of the run.
    which
        The object's samples; at least one has cells.
    outcome
        Of the run.
    runner
        For the record.
    decision
        What is positive.
    """
    samples, cells = with_cells(centers, outcome.cells, which)
    markers = runner.model.card.markers
    probability = stacked(cells, "probability")
    positive, broken = decision.labels(probability, markers)
    record = _provenance(samples, outcome, runner) | _removed(decision, broken)
    return center_table(
        samples,
        cells,
        x=probability,
        var=pd.DataFrame({"threshold": decision.thresholds}, index=list(markers)),
        layers={POSITIVE: positive},
        uns={UNS: record},
    )


def warn_of_contradictions(tables: Iterable[ad.AnnData], tree: Mapping[str, str]) -> None:
    """Say so if more than half of all cells contradict the hierarchy, which few do where it works."""
    tables = list(tables)
    n, lost = sum(t.n_obs for t in tables), sum(t.uns[UNS]["n_inconsistent"] for t in tables)
    if lost <= _MANY * n:
        return
    removed = sum((t.uns[UNS]["n_removed"] for t in tables), np.zeros(len(rules(tree)), np.int64))
    worst = np.argsort(-removed, kind="stable")[:3]
    told = ", ".join(f"{' without '.join(rules(tree)[i])} {removed[i]}" for i in worst if removed[i])
    warnings.warn(
        f"{lost} of {n} cells contradict the hierarchy of markers ({told}), and are undefined (NaN) in "
        f"layers[{POSITIVE!r}]: as a rule the network has learnt too little (see its card's metrics), or the "
        "thresholds don't suit it (thresholds=). hierarchy=False keeps all calls",
        NimbusWarning,
        stacklevel=3,
    )


def _removed(decision: Decision, broken: np.ndarray) -> dict[str, Any]:
    """The tree, and how many cells each of its rules made undefined."""
    record: dict[str, Any] = {
        "hierarchy": json.dumps(dict(decision.tree)),
        "n_inconsistent": int(broken.any(axis=1).sum()),
    }
    if decision.tree:
        names = [f"{child} without {above}" for child, above in rules(decision.tree)]
        record |= {"rules": np.array(names), "n_removed": broken.sum(axis=0).astype(np.int64)}
    return record


def _provenance(samples: list[CenterSample], outcome: Predicted, runner: SubtypeRunner) -> dict[str, Any]:
    """Everything needed to repeat the run."""
    card = runner.model.card
    measured = {} if outcome.difference is None else {"precision_difference": outcome.difference}
    return (
        record_of(samples, mpp=card.mpp)
        | measured
        | {
            "model": card.name,
            "architecture": json.dumps(dict(card.architecture)),
            "weights": weights_digest(runner.model.net),
            "weights_sha256": card.sha256,
            "licence": card.licence,
            "markers": np.array(card.markers),
            "patch": card.patch,
            "precision": runner.config.precision,
            "device": ", ".join(runner.devices),
        }
    )
