"""``nb.tl.train_subtyper``: a network that tells lymphocyte sub-types on H&E, from same-section labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
from spatialdata import SpatialData

from nimbus_sd._sdata import subtype_training as training
from nimbus_sd._sdata.cell_request import CellRequest
from nimbus_sd._sdata.subtype_patches import PatchPlan
from nimbus_sd._sdata.subtype_settings import configured
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.models.subtyper import SubtypeModel


def train_subtyper(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    image: str | Mapping[str, str] | None = None,
    table: str | ad.AnnData | Mapping[str, ad.AnnData] | None = None,
    layer: str = "gated",
    backbone: str | Mapping[str, Any] | None = None,
    pretrained: bool | str | Path | None = None,
    multitask: bool | None = None,
    weighted: bool | None = None,
    markers: str | Sequence[str] | None = None,
    seed: int | None = None,
    config: str | SubtypeTrainConfig = "finetune",
    split: Sequence[float] | Mapping[str, str] | None = None,
    n_cells: int | None = None,
    patient: str = "patient",
    section: str | None = None,
    patch_um: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    accumulation: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    patience: int | None = None,
    out: str | Path | None = None,
    mpp: float | None = None,
    coordinate_system: str | None = None,
    cache: int = 4 << 30,
    store: str | Path | None = None,
    trainer: str = "plain",
    device: str = "auto",
    precision: str = "auto",
    devices: int | str = 1,
    strategy: str = "auto",
    n_threads: int = 2,
    stop_at: int | None = None,
    progress: bool = True,
) -> SubtypeModel:
    """Train a network to tell from H&E which markers a cell has.

    Labels come from the immunofluorescence of the same section (:func:`nimbus_sd.pp.gate`); the
    network sees the H&E patch around each cell's centre, turned, flipped and with other amounts of
    stain in every epoch. Patients are kept apart: some are trained on, some judge after each epoch,
    by the mean AUROC of the markers, and some are left for tests. The weights of the best epoch are
    kept; where each marker has a network of its own, those of its own best epoch. Where all cells
    are of one patient, a strip of each section judges, at least a patch apart.

    Parameters
    ----------
    sdata
        Object with H&E images, cells' centres and a table of labels that annotates them; or
        several, as a list or by name.
    image
        Name of the H&E (three channels of uint8), which takes the cells that the table annotates
        on it, or ``{element that the table annotates: H&E}``; None takes for each the one H&E that
        overlaps it.
    table
        Name of the table, the table itself, or ``{object: table}``; None takes the one that has the
        layer.
    layer
        Labels in it: 1, 0, NaN (undefined, not learnt). Cells whose ``obs["registered"]`` is
        False are not used.
    backbone
        ``"convnext-tiny"`` (the default configuration's), another of the names that a wrong one
        lists, or a mapping with ``"kind"`` and its parameters.
    pretrained
        None starts from the backbone's published weights if they are in the hub's cache or can be
        fetched, else warns and starts from random ones (``config="small"`` does so in any case); True
        insists, False does not look, a path reads them there.
    multitask
        True (the default) for one backbone with a head per marker, False for a network per marker.
    weighted
        Whether positive cells weigh by their marker's ratio of negative to positive training cells
        (the default).
    markers
        Which; None takes CD45, CD3e, CD4 and CD8a, or those of them that have labels.
    seed
        Of the split, the draw of cells, first weights, order and augmentation.
    config
        ``"finetune"`` (a pretrained ConvNeXt-Tiny by the paper's recipe), ``"paper"`` (ConvNeXt-Base),
        ``"small"`` (two CPU cores, from scratch), or a
        :class:`~nimbus_sd.engine.subtyping.train_config.SubtypeTrainConfig`.
    split, n_cells, patient, section
        See :func:`nimbus_sd.pp.sample_cells`. None takes what that wrote to the table; without it
        patients are drawn 25 : 7 : 9, and 20,000 cells of each section.
    patch_um
        Side of the patches in µm, instead of the configuration's 36.4.
    epochs, batch_size, accumulation, learning_rate, weight_decay, patience
        Instead of the configuration's: most epochs; patches that go through the network together,
        and how often that is done in a step; of AdamW; epochs without a better AUROC before it stops.
    out
        Folder for the model (``weights.safetensors``, ``subtyper.json``) and the run (``run/``:
        checkpoint, configuration, ``log.csv``). A run that was interrupted goes on there, and ends
        with the weights of one that was not. None keeps the model in memory alone.
    mpp
        µm per px of the H&E, if it does not say.
    coordinate_system
        The one that centres and H&E share; None finds it.
    cache
        Bytes that patches may take in memory, 4 GiB by default. Where they are more, they are
        read again in every epoch, and shuffled through a buffer.
    store
        Folder to keep patches in that don't fit into memory (38 kB each), so that slides are read
        once and not in every epoch. Images must lie on disk.
    trainer
        ``"plain"``, or ``"lightning"`` (extra ``train``) for several GPUs.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:0"``, …
    precision
        Of the network's passes: ``"float32"``, ``"bfloat16"``, or ``"auto"`` for bfloat16 where the
        hardware multiplies it (on such CPUs a ConvNeXt trains twice as fast). A run goes on
        with the one that it began with.
    devices, strategy
        Handed to lightning.
    n_threads
        Reader threads; 0 reads when asked.
    stop_at
        Stop after this step; a later call goes on.
    progress
        Show progress bars.

    Returns
    -------
    Network and card for :func:`nimbus_sd.tl.predict_subtypes`; ``model.card.metrics`` has the figures
    of the best validation, ``model.card.training`` the configuration, where labels come from, patients
    and counts; ``model.card.hierarchy`` is the one that labels were curated by
    (:func:`nimbus_sd.pp.curate_hierarchy`). Cells that lie outside their H&E, or not in the element
    that the table annotates, are left out; a warning counts them.

    Raises
    ------
    ElementNotFoundError
        If an image, table, layer, column or marker does not exist.
    InputError
        If an image is no H&E or its pixel size is not known; a cell comes twice in the table, or none
        lies on its H&E; cells of one patient are in several parts, or only some tables say whose
        theirs are; a marker has too few cells of a class; nothing can judge; `out` holds another run,
        or one that saw other pixels or pixel sizes; or a loss is not finite.
    WeightsError, OfflineError
        If weights that are asked for don't fit or can't be had.
    MissingExtraError
        If lightning or transformers is needed and not installed.

    References
    ----------
    Pochet et al., *Lymphocytes subtyping on H&E slides with automatic labelling through
    same-tissue stained ImmunoFluorescence images*.

    Examples
    --------
    >>> import warnings
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_sections(n_patients=2, shape=(320, 320))
    >>> sdata["truth"].layers["gated"] = sdata["truth"].X
    >>> backbone = {"kind": "hovernet", "width": 2}  # far too small to be of use
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # it says how few cells these are
    ...     model = nb.tl.train_subtyper(
    ...         sdata, markers=["CD45"], config="small", backbone=backbone, epochs=1, progress=False
    ...     )
    >>> model.markers
    ('CD45',)
    """
    settings = configured(
        config,
        patch_um=patch_um,
        backbone=backbone,
        pretrained=pretrained,
        multitask=multitask,
        weighted=weighted,
        seed=seed,
        epochs=epochs,
        batch=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        patience=patience,
    )
    request = CellRequest(
        image=image,
        table=table,
        layer=layer,
        markers=markers,
        patient=patient,
        section=section,
        split=split,
        n_cells=n_cells,
        mpp=mpp,
        coordinate_system=coordinate_system,
        seed=settings.seed,
    )
    plan = PatchPlan(cache, None if store is None else Path(store), n_threads, progress)
    how = training.Training(
        config=settings,
        given_batch=batch_size is not None or accumulation is not None,
        plan=plan,
        out=None if out is None else Path(out),
        command=_command(
            settings,
            config,
            image=image,
            table=table,
            layer=layer,
            markers=markers,
            split=split,
            n_cells=n_cells,
            patient=patient,
            section=section,
            patch_um=patch_um,
            batch_size=batch_size,
            accumulation=accumulation,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            patience=patience,
            mpp=mpp,
            coordinate_system=coordinate_system,
        ),
        trainer=trainer,
        device=device,
        precision=precision,
        devices=devices,
        strategy=strategy,
        stop_at=stop_at,
    )
    return training.train_subtyper(sdata, request, how)


def _command(settings: SubtypeTrainConfig, config: str | SubtypeTrainConfig, **given: Any) -> str:
    """The call in a line, without what was left to itself; the whole configuration stands on the card too."""
    told = {
        "config": config if isinstance(config, str) else _Named(f"<{config.name}>"),
        "backbone": settings.backbone if isinstance(settings.backbone, str) else _Named("{...}"),
        "multitask": settings.multitask,
        "weighted": settings.weighted,
        "epochs": settings.epochs,
        "seed": settings.seed,
    }
    for name, value in given.items():
        if value is not None:
            tables = value.values() if isinstance(value, Mapping) else [value]
            told[name] = _Named("...") if any(isinstance(t, ad.AnnData) for t in tables) else value
    return f"nb.tl.train_subtyper(..., {', '.join(f'{k}={v!r}' for k, v in told.items())})"


class _Named(str):
    """Text that stands for something that can't be written in a line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
