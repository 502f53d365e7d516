"""Tell lymphocyte sub-types on H&E, by a network that learnt them from fluorescence of the same section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spatialdata import SpatialData

from nimbus_sd._sdata.identity import active_client, homes_for
from nimbus_sd._sdata.patch_run import patch_config, warn_of_empty
from nimbus_sd._sdata.samples import parts_of
from nimbus_sd._sdata.subtype_plan import plan_subtypes
from nimbus_sd._sdata.subtype_run import SubtypeRequest, predicted
from nimbus_sd._sdata.subtype_table import subtype_table, warn_of_contradictions
from nimbus_sd.engine.subtyping.run import SubtypeRunner
from nimbus_sd.models.subtyper import SubtypeModel, SubtypeNet
from nimbus_sd.tl._predict_table import keep

if TYPE_CHECKING:
    from distributed import Client


def predict_subtypes(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    model: str | Path | SubtypeModel | SubtypeNet,
    image: str | Mapping[str, str] | None = None,
    centers: str | Sequence[str] | Mapping[str, str] | None = None,
    table: str = "subtypes",
    hierarchy: bool | Mapping[str, str] = True,
    thresholds: float | Mapping[str, float] | None = None,
    overwrite: bool = False,
    write: bool | str | Path = False,
    mpp: float | None = None,
    coordinate_system: str | None = None,
    batch_size: int | None = None,
    device: str | Sequence[str] = "auto",
    precision: str = "auto",
    n_threads: int = 2,
    memory: int | str | None = None,
    client: Client | bool | None = None,
    resume: bool = True,
    progress: bool = True,
) -> None:
    """Predict from H&E which markers each cell has.

    A network looks at the patch around each cell's centre. The H&E is read lazily, in the order
    of its chunks and each once, but for chunks above 2,048 px, which are read in parts and
    decoded for each. The result does not depend on blocks, batch size, threads, devices or
    workers. Where px are larger or smaller than those of the model's training, patches
    of as many µm are cut and resampled. Where there is neither segmentation nor points,
    ``nb.pp.detect_nuclei(sdata, image="he", stain="haematoxylin")`` finds the nuclei first.

    Parameters
    ----------
    sdata
        Object with H&E images ``(c, y, x)``, three channels (red, green, blue) of uint8, and labels,
        points or shapes that say where cells are. Several, as a list or ``{name: object}``, get a
        table each.
    model
        What ``nb.tl.train_subtyper`` returned, its folder, or a bare network.
    image
        Name of the H&E, or ``{element of the centres: image}``; None takes for each element of the
        centres the one H&E (three channels of uint8) that overlaps it.
    centers
        Name or names of labels (their centroids), points or shapes (their centroids), or
        ``{element: image}``; None takes the labels if there are any, else the points, else the
        shapes. They may lie on another grid, such as that of the fluorescence, in a coordinate
        system that they share with the H&E.
    table
        Name of the table to write.
    hierarchy
        Which marker implies which: True takes the model's (such as CD45 > CD3e > CD4 and CD8a),
        False none, or ``{marker: the one it implies}``. A cell that is positive for a marker and
        negative for one that it implies becomes undefined for all of them, see
        :func:`nimbus_sd.pp.curate_hierarchy`.
    thresholds
        A cell is positive above this probability: one for all markers, or by marker; None, and
        markers that are left out, take the model's.
    overwrite
        Replace a table of that name, with all that was added to it.
    write
        True also persists the table in the object's zarr store, atomically. A folder or URL gets
        a small SpatialData store with it for every object, see :func:`nimbus_sd.tl.predict`.
    mpp
        µm per px of the H&E; None looks for it in the object.
    coordinate_system
        Where elements are compared and positions are given; None takes one they share.
    batch_size
        Patches per forward pass; None finds it from memory.
    device
        ``"auto"`` (all GPUs, else the CPU), ``"cpu"``, ``"cuda:0"``, ``"mps"``, or several.
    precision
        ``"float32"``, which ``"auto"`` is too, or ``"bfloat16"``: faster on some devices, but it
        moves probabilities; by how much is in the record of the run.
    n_threads
        Reader threads per device.
    memory
        What the network's activations may take: bytes, or ``"4 GiB"``. None takes a third of
        what is free.
    client
        :class:`dask.distributed.Client` whose workers predict; None takes the active one, if there
        is one; False computes in this process all the same.
    resume
        Go on where an interrupted run with the same inputs, weights and settings stopped, see
        :func:`nimbus_sd.tl.predict`.
    progress
        Show progress bars with rate and remaining time.

    Returns
    -------
    None; writes ``sdata[table]`` (of each object), a table that annotates the centres, with

    - ``X`` float32 ``(n_cells, n_markers)``: probability of each marker, never NaN;
    - ``layers["positive"]`` float32: 1 where that is above the threshold, else 0; NaN where a
      cell contradicts the hierarchy;
    - ``var["threshold"]``;
    - ``obs``, indexed ``<element>_<id>``: ``region``, ``instance_id`` (int64; label id or index),
      ``border`` (whether the patch reaches beyond the image and was filled by reflection),
      ``area_px`` for labels;
    - ``obsm["spatial"]``: centres (x, y) in the coordinate system;
    - ``uns["nimbus_subtypes"]``: what is needed to repeat the run, ``n_inconsistent`` cells that
      contradict the hierarchy, and ``n_removed`` by each of its ``rules``.

    Rows are in the order of label ids, or of the points or shapes.

    Raises
    ------
    InputError
        If an image is no H&E, its pixel size is not known or can't be that of one, elements can't be
        paired, a patch is larger than the image, a centre lies outside it, there is no cell, a
        threshold or the hierarchy does not fit the model, the table exists, centres are not in the
        store that ``write=True`` writes to, or another run works on the store. Nothing is written then.
    ElementNotFoundError
        If an element does not exist.
    WeightsError
        If the model can't be used.
    DataError
        If a chunk of an image can't be read; finished blocks are kept.
    ClusterError
        If the cluster has no workers, or they die of a block; finished blocks are kept.

    Warns
    -----
    NimbusWarning
        If more than half of the cells contradict the hierarchy, or `mpp` is not what the H&E's scale
        says.

    References
    ----------
    Pochet et al., *Lymphocytes subtyping on H&E slides with automatic labelling through
    same-tissue stained ImmunoFluorescence images*: patches of 112 px of 0.325 µm.

    Examples
    --------
    >>> import numpy as np
    >>> import nimbus_sd as nb
    >>> from nimbus_sd.models.subtyper import SubtypeConfig, SubtypeNet
    >>> from spatialdata import SpatialData
    >>> from spatialdata.models import Image2DModel
    >>> from spatialdata.transformations import Scale
    >>> rgb = np.random.default_rng(0).integers(90, 250, (3, 128, 128), dtype=np.uint8)
    >>> to = {"microns": Scale([0.325, 0.325], axes=("x", "y"))}
    >>> sdata = SpatialData(images={"he": Image2DModel.parse(rgb, dims="cyx", transformations=to)})
    >>> nb.pp.detect_nuclei(sdata, stain="haematoxylin", sigma=4, progress=False)
    >>> net = SubtypeNet(SubtypeConfig(backbone={"kind": "hovernet", "width": 2}))  # untrained
    >>> nb.tl.predict_subtypes(sdata, image="he", model=net, progress=False)
    >>> list(sdata["subtypes"].var_names)
    ['CD45', 'CD3e', 'CD4', 'CD8a']
    """
    config = patch_config(
        batch_size=batch_size, n_threads=n_threads, device=device, precision=precision, memory=memory
    )
    plan = plan_subtypes(
        sdata,
        model=model,
        image=image,
        centers=centers,
        table=table,
        hierarchy=hierarchy,
        thresholds=thresholds,
        overwrite=overwrite,
        write=write,
        mpp=mpp,
        coordinate_system=coordinate_system,
    )
    found, targets, decision = plan.centers, plan.targets, plan.decision
    runner = SubtypeRunner.make(plan.model, config, active_client(client))
    request = SubtypeRequest(found, runner, progress)
    warn_of_empty(found)
    homes = homes_for([t.store for t in targets.values()], [s.image for s in found.samples])
    with predicted(request, homes, resume=resume) as outcome:
        made = {
            name: subtype_table(found, which, outcome, runner, decision=decision)
            for name, which in parts_of([s.of for s in found.samples]).items()
            if any(map(len, found.samples[which]))
        }
        for name, each in made.items():
            keep(targets[name], table, None, each, {}, {})
    warn_of_contradictions(made.values(), decision.tree)
