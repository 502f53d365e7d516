"""``nb.io.read_pan_multiplex``: the gold-standard part of the Pan-Multiplex dataset."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd.io._read_fovs import read_fovs

DATASETS = {
    "codex_colon": ("CODEX", "colon"),
    "mibi_breast": ("MIBI", "breast"),
    "mibi_decidua": ("MIBI", "decidua"),
    "vectra_colon": ("Vectra", "colon"),
    "vectra_pancreas": ("Vectra", "pancreas"),
}
"""Platform and tissue of each dataset."""
GOLD_FILE = "gold_standard_groundtruth.csv"
_COLUMNS = ("dataset", "fov", "cell_id", "channel", "activity")
_MPP = 0.5


def read_pan_multiplex(
    root: str | PathLike[str],
    *,
    datasets: Sequence[str] | None = None,
    mpp: float | Mapping[str, float] = _MPP,
) -> dict[str, SpatialData]:
    """Read the gold-standard part of Pan-Multiplex, lazily, one object per dataset.

    Panels and intensity scales differ between the datasets, and normalisation is per
    dataset: so each is an object of its own, to be handed to
    :func:`nimbus_sd.tl.predict` by itself.

    Parameters
    ----------
    root
        Folder with ``<dataset>/fovs``, ``<dataset>/masks`` and
        ``gold_standard_groundtruth.csv`` (columns ``dataset, fov, cell_id, channel,
        activity``: 0 negative, 1 positive, 2 ambiguous).
    datasets
        Which of ``codex_colon, mibi_breast, mibi_decidua, vectra_colon,
        vectra_pancreas``; None takes those that are there.
    mpp
        µm per px, for all or by dataset (0.5 for those left out). The default is that of a
        20x objective, as the dataset's authors treat all of them: images are halved before
        the network.

    Returns
    -------
    Dataset to an object of its annotated fields as of :func:`nimbus_sd.io.read_fovs`, with
    a table ``"gold"`` of the annotated cells: ``X`` and ``layers["gold"]`` float32 1
    positive, 0 negative, NaN ambiguous or not annotated; ``obs`` ``region``,
    ``instance_id``, ``fov``, ``dataset``, ``platform``, ``tissue``.

    Raises
    ------
    InputError
        If there is no dataset or no gold CSV; a name is unknown; a mask is missing or
        ambiguous; or the CSV names fields or channels that the images lack, cells
        twice, a cell id that is no label, or an activity other than 0, 1, 2.

    References
    ----------
    Rumberger, Greenwald et al. (2025), *Automated classification of cellular expression in
    multiplexed imaging data with Nimbus*.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np, tifffile
    >>> import nimbus_sd as nb
    >>> root = Path(tempfile.mkdtemp())
    >>> for folder in ("fovs/fov1", "masks"):
    ...     (root / "mibi_breast" / folder).mkdir(parents=True)
    >>> tifffile.imwrite(root / "mibi_breast/fovs/fov1/CD3.tiff", np.ones((32, 32), "uint8"))
    >>> tifffile.imwrite(root / "mibi_breast/masks/fov1_whole_cell.tiff", np.ones((32, 32), "uint16"))
    >>> lines = ["dataset,fov,cell_id,channel,activity", "mibi_breast,fov1,1,CD3,1"]
    >>> _ = (root / "gold_standard_groundtruth.csv").write_text(chr(10).join(lines))
    >>> found = nb.io.read_pan_multiplex(root, datasets=["mibi_breast"])
    >>> found["mibi_breast"]["gold"].to_df("gold").loc["fov1_labels_1", "CD3"].item()
    1.0
    """
    folder = Path(root)
    sizes = dict(mpp) if isinstance(mpp, Mapping) else dict.fromkeys(DATASETS, mpp)
    unknown = [d for d in sizes if d not in DATASETS]
    if unknown:
        msg = f"mpp names {unknown}; give a number or a mapping from {', '.join(DATASETS)}"
        raise InputError(msg)
    chosen = _choose(folder, datasets)
    gold = _read_gold(folder / GOLD_FILE)
    out = {}
    for name in chosen:
        rows = gold[gold["dataset"] == name]
        if rows.empty:
            msg = (
                f"{folder / GOLD_FILE}: no rows of dataset {name!r}; it has "
                f"{', '.join(sorted(set(gold['dataset'])))}. Leave {name!r} out with datasets="
            )
            raise InputError(msg)
        size = float(sizes.get(name, _MPP))
        sdata = read_fovs(
            folder / name / "fovs", labels=folder / name / "masks", mpp=size, fovs=list(rows["fov"].unique())
        )
        sdata["gold"] = _gold_table(name, rows, sdata)
        out[name] = sdata
    return out


def _choose(folder: Path, datasets: Sequence[str] | None) -> list[str]:
    unknown = [d for d in datasets or () if d not in DATASETS]
    if unknown or isinstance(datasets, str) or (datasets is not None and not datasets):
        msg = f"datasets={datasets!r}: give a list of {', '.join(DATASETS)}"
        raise InputError(msg)
    there = [d for d in DATASETS if (folder / d / "fovs").is_dir() and (folder / d / "masks").is_dir()]
    if datasets is not None:
        there = [d for d in datasets if d in there]
        missing = [d for d in datasets if d not in there]
    else:
        missing = [d for d in DATASETS if d not in there]
    if not there or (datasets is not None and missing):
        msg = f"{folder}: {', '.join(missing)} not found; wanted <dataset>/fovs and <dataset>/masks in it"
        raise InputError(msg)
    if missing:
        warnings.warn(f"{folder}: no {', '.join(missing)}; reading the others", NimbusWarning, stacklevel=3)
    return there


def _read_gold(path: Path) -> pd.DataFrame:
    if not path.is_file():
        msg = f"no gold labels at {path}"
        raise InputError(msg)
    try:
        gold = pd.read_csv(path, dtype={"fov": str, "channel": str})
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        msg = f"{path} is not a CSV table ({error})"
        raise InputError(msg) from error
    missing = [c for c in _COLUMNS if c not in gold]
    if missing:
        msg = f"{path}: no column {missing}; wanted {', '.join(_COLUMNS)}"
        raise InputError(msg)
    wrong = ~gold["activity"].isin([0, 1, 2])
    if wrong.any():
        msg = f"{path}: activity {gold['activity'][wrong].iloc[0]}; valid: 0 (negative), 1 (positive), 2"
        raise InputError(msg)
    ids = pd.to_numeric(gold["cell_id"], errors="coerce")
    broken = ids.isna() | (ids % 1 != 0) | (ids < 1)
    if broken.any():
        msg = f"{path}: cell_id {gold['cell_id'][broken].iloc[0]}; valid: whole numbers from 1"
        raise InputError(msg)
    gold["cell_id"] = ids.astype(np.int64)
    key = ["dataset", "fov", "cell_id", "channel"]
    twice = gold.duplicated(key)
    if twice.any():
        first = ", ".join(map(str, gold.loc[twice, key].iloc[0]))
        msg = f"{path}: {int(twice.sum())} cells and channels appear twice, first {first}"
        raise InputError(msg)
    return gold


def _gold_table(dataset: str, rows: pd.DataFrame, sdata: SpatialData) -> ad.AnnData:
    """Annotated cells x channels, cells in the order of field and id."""
    regions = {fov: f"{fov}_labels" for fov in rows["fov"].unique()}
    images = {fov: f"{fov}_image" for fov in regions}
    lost = [fov for fov in regions if regions[fov] not in sdata.labels]
    if lost:
        fields = ", ".join(n.removesuffix("_labels") for n in sdata.labels)
        msg = f"gold labels of {dataset}: no fields {lost[:5]}; the images are of {fields}"
        raise InputError(msg)
    channels = [str(c) for c in sdata[next(iter(images.values()))].c.values]
    unknown = sorted(set(rows["channel"]) - set(channels))
    if unknown:
        msg = (
            f"gold labels of {dataset}: no channels {unknown} in the images; there are {', '.join(channels)}"
        )
        raise InputError(msg)
    value = rows["activity"].replace(2, np.nan).astype(np.float32)
    wide = rows.assign(value=value).pivot(index=["fov", "cell_id"], columns="channel", values="value")
    wide = wide[[c for c in channels if c in wide]].sort_index()
    platform, tissue = DATASETS[dataset]
    fov = wide.index.get_level_values("fov").astype(str)
    obs = pd.DataFrame({"fov": fov, "instance_id": wide.index.get_level_values("cell_id").astype(np.int64)})
    obs["region"] = pd.Categorical(obs["fov"].map(regions), categories=list(dict.fromkeys(fov.map(regions))))
    obs = obs.assign(dataset=dataset, platform=platform, tissue=tissue)
    obs.index = pd.Index([f"{r}_{i}" for r, i in zip(obs["region"], obs["instance_id"], strict=True)])
    values = wide.to_numpy(np.float32)
    table = ad.AnnData(
        values, obs=obs, var=pd.DataFrame(index=list(wide.columns)), layers={"gold": values.copy()}
    )
    return TableModel.parse(
        table, region=list(obs["region"].cat.categories), region_key="region", instance_key="instance_id"
    )
