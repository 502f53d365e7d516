"""Everything that an embedding run needs and that can be checked before it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd._sdata.centers import CenterSet
from nimbus_sd._sdata.cohort import as_cohort
from nimbus_sd._sdata.destination import Destination, destinations
from nimbus_sd._sdata.embedding_run import centers_for, known_scale
from nimbus_sd._sdata.patch_run import check_stored
from nimbus_sd.engine.embedding.patches import check_size
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.models.channelwise import ChannelwiseNet
from nimbus_sd.models.embedding import EmbeddingModel, load_embedding


@dataclass(frozen=True)
class EmbeddingPlan:
    """What would be embedded, and where it would go.

    Attributes
    ----------
    model
        Loaded.
    centers
        Cells with their images.
    targets
        Destination of each object, by its name.
    """

    model: EmbeddingModel
    centers: CenterSet
    targets: Mapping[str, Destination]


def plan_embedding(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    model: str | Path | EmbeddingModel | ChannelwiseNet,
    image: str | Mapping[str, str] | None,
    centers: str | Sequence[str] | Mapping[str, str] | None,
    table: str,
    overwrite: bool,
    write: bool | str | Path,
    normalization: Normalization | None,
    mpp: float | None,
    coordinate_system: str | None,
) -> EmbeddingPlan:
    """Check the names to write, load the model, find cells and images; see :func:`nimbus_sd.tl.embed`.

    Raises
    ------
    InputError, ElementNotFoundError, WeightsError
        As there; nothing is written.
    """
    objects = as_cohort(sdata)
    targets = destinations(objects, write)
    for target in targets.values():
        target.check(table, None, overwrite=overwrite)
    loaded = load_embedding(model)
    known_scale(loaded, normalization)
    found = centers_for(
        loaded, objects, image=image, centers=centers, coordinate_system=coordinate_system, mpp=mpp
    )
    for sample in found.samples:
        check_size(sample.patches, loaded.card.crop)
        check_stored(targets[sample.of], sample)
    return EmbeddingPlan(loaded, found, targets)
