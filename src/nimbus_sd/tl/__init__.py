"""Tools: score every cell and marker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.tl._apply_calibration import apply_calibration
    from nimbus_sd.tl._assign_som import assign_som
    from nimbus_sd.tl._average_evaluation import average_evaluation
    from nimbus_sd.tl._batch_effects import batch_effects
    from nimbus_sd.tl._calibrate import calibrate
    from nimbus_sd.tl._channel_attribution import channel_attribution
    from nimbus_sd.tl._concat_tables import concat_tables
    from nimbus_sd.tl._confounders import confounders
    from nimbus_sd.tl._control_adjust import control_adjust
    from nimbus_sd.tl._embed import embed
    from nimbus_sd.tl._estimate import estimate
    from nimbus_sd.tl._evaluate import evaluate
    from nimbus_sd.tl._finetune import finetune
    from nimbus_sd.tl._flowsom import flowsom
    from nimbus_sd.tl._merge_clusters import merge_clusters
    from nimbus_sd.tl._name_clusters import name_clusters
    from nimbus_sd.tl._phenograph import phenograph
    from nimbus_sd.tl._phenotype import phenotype
    from nimbus_sd.tl._predict import predict
    from nimbus_sd.tl._predict_subtypes import predict_subtypes
    from nimbus_sd.tl._recalibrate import recalibrate
    from nimbus_sd.tl._rediscovery import rediscovery
    from nimbus_sd.tl._spillover import spillover
    from nimbus_sd.tl._subcluster import subcluster
    from nimbus_sd.tl._train import train
    from nimbus_sd.tl._train_embedding import train_embedding
    from nimbus_sd.tl._train_subtyper import train_subtyper
    from nimbus_sd.tl._undo_clusters import undo_clusters

__all__ = [
    "apply_calibration",
    "assign_som",
    "average_evaluation",
    "batch_effects",
    "calibrate",
    "channel_attribution",
    "concat_tables",
    "confounders",
    "control_adjust",
    "embed",
    "estimate",
    "evaluate",
    "finetune",
    "flowsom",
    "merge_clusters",
    "name_clusters",
    "phenograph",
    "phenotype",
    "predict",
    "predict_subtypes",
    "recalibrate",
    "rediscovery",
    "spillover",
    "subcluster",
    "train",
    "train_embedding",
    "train_subtyper",
    "undo_clusters",
]

# a file named as its function would shadow it: importing a submodule sets it as the package's attribute
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "apply_calibration": "_apply_calibration",
        "assign_som": "_assign_som",
        "average_evaluation": "_average_evaluation",
        "batch_effects": "_batch_effects",
        "calibrate": "_calibrate",
        "channel_attribution": "_channel_attribution",
        "concat_tables": "_concat_tables",
        "confounders": "_confounders",
        "control_adjust": "_control_adjust",
        "embed": "_embed",
        "estimate": "_estimate",
        "evaluate": "_evaluate",
        "finetune": "_finetune",
        "flowsom": "_flowsom",
        "merge_clusters": "_merge_clusters",
        "name_clusters": "_name_clusters",
        "phenograph": "_phenograph",
        "phenotype": "_phenotype",
        "predict": "_predict",
        "predict_subtypes": "_predict_subtypes",
        "recalibrate": "_recalibrate",
        "rediscovery": "_rediscovery",
        "spillover": "_spillover",
        "subcluster": "_subcluster",
        "train": "_train",
        "train_embedding": "_train_embedding",
        "train_subtyper": "_train_subtyper",
        "undo_clusters": "_undo_clusters",
    },
)
