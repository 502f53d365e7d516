"""Tools: score every cell and marker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.tl._apply_calibration import apply_calibration
    from nimbus_sd.tl._average_evaluation import average_evaluation
    from nimbus_sd.tl._calibrate import calibrate
    from nimbus_sd.tl._concat_tables import concat_tables
    from nimbus_sd.tl._confounders import confounders
    from nimbus_sd.tl._estimate import estimate
    from nimbus_sd.tl._evaluate import evaluate
    from nimbus_sd.tl._finetune import finetune
    from nimbus_sd.tl._predict import predict
    from nimbus_sd.tl._recalibrate import recalibrate
    from nimbus_sd.tl._train import train

__all__ = [
    "apply_calibration",
    "average_evaluation",
    "calibrate",
    "concat_tables",
    "confounders",
    "estimate",
    "evaluate",
    "finetune",
    "predict",
    "recalibrate",
    "train",
]

# a file named as its function would shadow it: importing a submodule sets it as the package's attribute
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "apply_calibration": "_apply_calibration",
        "average_evaluation": "_average_evaluation",
        "calibrate": "_calibrate",
        "concat_tables": "_concat_tables",
        "confounders": "_confounders",
        "estimate": "_estimate",
        "evaluate": "_evaluate",
        "finetune": "_finetune",
        "predict": "_predict",
        "recalibrate": "_recalibrate",
        "train": "_train",
    },
)
