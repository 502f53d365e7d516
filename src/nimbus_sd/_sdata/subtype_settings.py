"""Settings of a sub-typing training: what a call makes of them, and what is refused before data is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.embedding_training import RUN
from nimbus_sd._sdata.writable import check_model_folder
from nimbus_sd.engine.embedding.train_loop import LAST
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.engine.training.state import check_checkpoint
from nimbus_sd.models.subtype_backbones import backbone_config
from nimbus_sd.models.subtype_weights import load_pretrained
from nimbus_sd.models.subtyper import CARD_FILE, SubtypeConfig, SubtypeNet, check_patch


def configured(
    config: str | SubtypeTrainConfig, *, patch_um: float | None = None, **given: Any
) -> SubtypeTrainConfig:
    """The configuration, or a preset's, with what a call changes; what is None stays.

    Raises
    ------
    InputError
        If there is no such preset, or a value is out of range.
    """
    if not isinstance(config, str | SubtypeTrainConfig):
        msg = f"config={config!r}: pass a preset's name or a SubtypeTrainConfig"
        raise InputError(msg)
    settings = SubtypeTrainConfig.preset(config) if isinstance(config, str) else config
    given = {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if v is not None}
    settings = replace(settings, **given)
    return settings if patch_um is None else replace(settings, patch=_patch(patch_um, settings.mpp))


def _patch(patch_um: float, mpp: float) -> int:
    """Side in px at the model's pixel size."""
    if isinstance(patch_um, bool) or not isinstance(patch_um, int | float) or not patch_um > 0:
        msg = f"patch_um={patch_um!r} must be a positive number of µm, for instance 36.4"
        raise InputError(msg)
    return round(patch_um / mpp)


def check_network(config: SubtypeTrainConfig) -> None:
    """Build the network without its weights, and read those that it is asked to start from.

    Raises
    ------
    InputError
        If the backbone can't be built, or patches are too small for it.
    MissingExtraError
        If it needs transformers, which is not installed.
    WeightsError, OfflineError
        If weights that are asked for don't fit or can't be had.
    """
    settings = SubtypeConfig(backbone=backbone_config(config.backbone), hidden=config.hidden)
    with torch.device("meta"):
        check_patch(SubtypeNet(settings), config.patch)
    if config.pretrained is True or isinstance(config.pretrained, str):
        with torch.random.fork_rng(devices=[]):
            load_pretrained(SubtypeNet(settings), config.backbone, config.pretrained)


def check_out(out: Path | None, config: SubtypeTrainConfig, *, given_batch: bool) -> bool:
    """Whether a folder holds a run with these settings to go on with.

    Parameters
    ----------
    out
        Folder of the model.
    config
        Settings; the size of a step may still be fitted to the cells unless it is `given_batch`.

    Raises
    ------
    InputError
        If it holds something else.
    """
    if out is None:
        return False
    check_model_folder(out)
    last = out / RUN / LAST
    if not last.exists():
        if (out / CARD_FILE).exists():
            msg = f"{out} holds a model of another run; give another out folder, or delete this one"
            raise InputError(msg)
        if out.exists() and not out.is_dir():
            msg = f"out={str(out)!r} is a file; give a folder"
            raise InputError(msg)
        return False
    known = config.to_dict()
    if not given_batch:
        known = {k: v for k, v in known.items() if k not in ("batch", "accumulation")}
    check_checkpoint(last, config=known)
    return True


def check_data(out: Path | None, told: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` if a run in the folder has seen other data than is told so far."""
    if out is not None and (out / RUN / LAST).exists():
        check_checkpoint(out / RUN / LAST, data=told)
