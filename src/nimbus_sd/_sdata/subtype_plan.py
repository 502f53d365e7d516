"""Everything that a run over H&E needs and that can be checked before it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd._sdata.centers import CenterSet
from nimbus_sd._sdata.cohort import as_cohort
from nimbus_sd._sdata.destination import Destination, destinations
from nimbus_sd._sdata.he import he_centers
from nimbus_sd._sdata.model_kinds import SUBTYPER, check_kind
from nimbus_sd._sdata.patch_run import check_stored
from nimbus_sd._sdata.subtype_table import Decision, decision_for
from nimbus_sd.engine.embedding.patches import check_size
from nimbus_sd.engine.subtyping.inputs import native_size
from nimbus_sd.models.subtyper import SubtypeModel, SubtypeNet, load_subtyper


@dataclass(frozen=True)
class SubtypePlan:
    """What would be predicted, and where it would go.

    Attributes
    ----------
    model
        Loaded.
    decision
        Thresholds and hierarchy.
    centers
        Cells with their H&E.
    targets
        Destination of each object, by its name.
    """

    model: SubtypeModel
    decision: Decision
    centers: CenterSet
    targets: Mapping[str, Destination]


def plan_subtypes(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    model: str | Path | SubtypeModel | SubtypeNet,
    image: str | Mapping[str, str] | None,
    centers: str | Sequence[str] | Mapping[str, str] | None,
    table: str,
    hierarchy: bool | Mapping[str, str],
    thresholds: float | Mapping[str, float] | None,
    overwrite: bool,
    write: bool | str | Path,
    mpp: float | None,
    coordinate_system: str | None,
) -> SubtypePlan:
    """Check names to write, load the model, find cells and H&E; see :func:`nimbus_sd.tl.predict_subtypes`.

    Raises
    ------
    InputError, ElementNotFoundError, WeightsError
        As there; nothing is written.
    """
    objects = as_cohort(sdata)
    targets = destinations(objects, write)
    for target in targets.values():
        target.check(table, None, overwrite=overwrite)
    check_kind(model, SUBTYPER)
    loaded = load_subtyper(model)
    decision = decision_for(loaded.card, hierarchy=hierarchy, thresholds=thresholds)
    found = he_centers(objects, image=image, centers=centers, coordinate_system=coordinate_system, mpp=mpp)
    card = loaded.card
    for sample in found.samples:
        check_size(sample.patches, native_size(card.patch, card.mpp, sample.mpp or card.mpp))
        check_stored(targets[sample.of], sample)
    return SubtypePlan(loaded, decision, found, targets)
