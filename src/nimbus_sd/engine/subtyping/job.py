"""What a run that predicts sub-types computes, in a form that travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.patch_job import PatchJob
from nimbus_sd.engine.subtyping.inputs import native_size

if TYPE_CHECKING:
    from nimbus_sd.engine.subtyping.predictor import SubtypePredictor


@dataclass(frozen=True, kw_only=True)
class SubtypeJob(PatchJob):
    """As :class:`~nimbus_sd.engine.patch_job.PatchJob`, for networks that tell sub-types on H&E.

    Attributes
    ----------
    patch, mpp
        Side of the patches that the network sees in px, and µm per px of these.
    samples
        Their images are H&E, and their ``mpp`` is known.
    model
        Folder that :func:`nimbus_sd.models.load_subtyper` takes.

    Raises
    ------
    InputError
        If an image's pixel size is not known.
    """

    patch: int
    mpp: float

    def __post_init__(self) -> None:
        unknown = [s.image.name for s in self.samples if s.mpp is None]
        if unknown:
            msg = f"image {unknown[0]!r}: how large is a px? Pass mpp= (µm per px)"
            raise InputError(msg)

    def channels(self, sample: int) -> list[int]:
        """Red, green, blue."""
        return [0, 1, 2]

    def size(self, sample: int) -> int:
        """Px that show as much tissue as the network's patches."""
        mpp = self.samples[sample].mpp
        return self.patch if mpp is None else native_size(self.patch, self.mpp, mpp)

    def scorer(self) -> SubtypePredictor:
        """Load the model; called on a worker."""
        from nimbus_sd.engine.subtyping.predictor import SubtypePredictor  # which imports this module
        from nimbus_sd.models.subtyper import load_subtyper

        return SubtypePredictor(load_subtyper(self.model), self.config)
