"""Simulated multiplexed tissue with known truth as a SpatialData object."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from spatialdata.transformations import Identity, Scale

from nimbus_sd._core.errors import InputError
from nimbus_sd.simulation import Field, FieldConfig, PlatformConfig, panel, simulate_field
from nimbus_sd.simulation.panel import PANEL

_CHUNK = 512


def simulated_tissue(
    *,
    n_fovs: int = 2,
    shape: tuple[int, int] = (1024, 1024),
    mpp: float = 0.5,
    channels: Sequence[str] | None = None,
    platform: str = "ions_denoised",
    seed: int = 0,
) -> SpatialData:
    """Simulate fields of view of one experiment, with the truth in a table.

    Parameters
    ----------
    n_fovs
        Number of fields.
    shape
        (y, x) px of a field, at least 32 each.
    mpp
        µm per px.
    channels
        Names of the simulator's panel; None takes all 20.
    platform
        ``"ions"``, ``"ions_denoised"`` (as MIBI), ``"fluorescence8"``, ``"fluorescence16"``
        (as CODEX) or ``"float"``.
    seed
        Decides everything.

    Returns
    -------
    Object with ``fov<i>_image`` ``(c, y, x)``, ``fov<i>_labels`` ``(y, x)`` uint32 (an
    imperfect segmentation, as real ones are), one coordinate system per field,
    the pixel size in the transformation to ``"microns"``, and the table ``"truth"``:
    ``X`` float32 ``(n_cells, n_channels)`` 1 positive, 0 negative, NaN undefined;
    ``obs["cell_type"]``.

    Raises
    ------
    InputError
        If a parameter is out of range or a channel is not in the panel.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(96, 128), channels=["CD3", "CD8"])
    >>> sdata["fov0_image"].shape
    (2, 96, 128)
    """
    if n_fovs < 1:
        msg = f"n_fovs={n_fovs} must be at least 1"
        raise InputError(msg)
    markers = PANEL if channels is None else panel(tuple(channels))
    config = FieldConfig(shape=shape, mpp=mpp, markers=markers, platform=PlatformConfig(kind=platform))
    # neighbouring seeds of one experiment must not repeat those of the next
    seeds = np.random.SeedSequence(seed).generate_state(n_fovs)
    fields = {f"fov{i}": simulate_field(int(s), config) for i, s in enumerate(seeds)}
    images, labels = {}, {}
    for name, field in fields.items():
        transformations = {name: Identity(), "microns": Scale([mpp, mpp], axes=("x", "y"))}
        images[f"{name}_image"] = Image2DModel.parse(
            field.image,
            dims=("c", "y", "x"),
            c_coords=list(field.channel_names),
            transformations=transformations,
            chunks=(1, _CHUNK, _CHUNK),
        )
        labels[f"{name}_labels"] = Labels2DModel.parse(
            field.labels, dims=("y", "x"), transformations=dict(transformations), chunks=(_CHUNK, _CHUNK)
        )
    sdata = SpatialData(images=images, labels=labels, tables={"truth": _truth(fields)})
    sdata.attrs["nimbus_sd"] = {"mpp": mpp}
    return sdata


def _truth(fields: dict[str, Field]) -> ad.AnnData:
    obs = pd.concat(
        [
            pd.DataFrame(
                {
                    "region": f"{name}_labels",
                    "instance_id": field.instance_ids.astype(np.int64),
                    "cell_type": field.cell_types,
                },
                index=[f"{name}_labels_{i}" for i in field.instance_ids],
            )
            for name, field in fields.items()
        ]
    )
    regions = [f"{name}_labels" for name in fields]
    obs["region"] = pd.Categorical(obs["region"], categories=regions)
    obs["cell_type"] = pd.Categorical(obs["cell_type"])
    first = next(iter(fields.values()))
    table = ad.AnnData(
        np.concatenate([f.positive for f in fields.values()]).astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=list(first.channel_names)),
    )
    return TableModel.parse(table, region=regions, region_key="region", instance_key="instance_id")
