"""Simulated sections stained twice, with immunofluorescence and H&E, as a SpatialData object."""

from __future__ import annotations

from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.hierarchy import MARKERS
from nimbus_sd.simulation import (
    Placement,
    Section,
    SectionConfig,
    random_stain,
    simulate_section,
    vary_stain,
)

_CHUNK = 512


@dataclass(frozen=True)
class _Named:
    """A section, its names and its pixel sizes in µm."""

    name: str
    patient: str
    section: Section
    mpp: float
    he_mpp: float

    @property
    def region(self) -> str:
        return f"{self.name}_labels"


def simulated_sections(
    *,
    n_patients: int = 1,
    sections_per_patient: int = 1,
    shape: tuple[int, int] = (1024, 1024),
    mpp: float = 0.325,
    immune: float = 0.2,
    he_mpp: float | None = None,
    rotation: float = 0.0,
    registration_error: float = 0.5,
    offset: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> SpatialData:
    """Simulate sections with immunofluorescence and H&E of the same cells, and their truth.

    Nuclei of each cell type have their own size, shape, chromatin, and cytoplasm in H&E, and
    overlap: no classifier is perfect. Stains and scanners differ between patients and, less,
    between sections of one.

    Parameters
    ----------
    n_patients, sections_per_patient
        How many. Sections are named ``p<i>s<j>``.
    shape
        (y, x) px of the immunofluorescence, at least 64 each.
    mpp
        µm per px of the immunofluorescence.
    immune
        Usual share of CD45 positive cells; patients vary around it. Half of these are T cells.
    he_mpp
        µm per px of the H&E; None takes ``mpp``.
    rotation
        Degrees by which the H&E lies turned on its own grid; its transformation says so.
    registration_error
        Root mean square length in µm of a smooth local error that no transformation tells.
    offset
        (y, x) µm by which every H&E lies off besides, for tests of quality control.
    seed
        Decides everything.

    Returns
    -------
    Object with, per section, ``<section>_if`` ``(c, y, x)`` uint16 (Hoechst, CD45, CD3e, CD4,
    CD8a, CD20, CD68, Pan-CK), ``<section>_he`` ``(3, y, x)`` uint8 (r, g, b),
    ``<section>_labels`` ``(y, x)`` uint32 (nuclei and a rim, segmented with errors), all in a
    coordinate system named as the section and in ``"microns"``; and two tables that annotate
    the labels, with ``obs["patient"]`` and ``obs["section"]``:

    - ``"table"``: mean intensities, float32, in ``X`` and ``layers["integrated_expression"]``;
      ``obs["area_px"]``; ``obsm["spatial"]`` (x, y) in the section's coordinate system.
    - ``"truth"``: ``X`` float32 for CD45, CD3e, CD4, CD8a: 1 positive, 0 negative, NaN where a
      label covers several cells; ``obs["cell_type"]``; ``obs["registration_error"]`` in µm;
      and what was drawn for the cell's look (``nucleus_diameter`` in µm, ``nucleus_haematoxylin``
      and so on).

    Raises
    ------
    InputError
        If a parameter is out of range.

    Notes
    -----
    A field of 1024 x 1024 px at 0.325 µm has some 900 cells; usually a fifth are positive for
    CD45, a tenth for CD3e, a twentieth for CD4 and CD8a each. What can be reached: a random
    forest that is given what was drawn for each cell and its eight neighbours, which no image shows
    in full, has an AUROC of 0.98 for CD45, 0.96 for CD3e, 0.96 for CD4 and 0.92 for CD8a on other
    patients; 0.78 for telling CD8 from CD4 T cells. Sums of dye around each cell's centre give 0.94,
    0.89, 0.90 and 0.82 with eight patients.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_sections(shape=(128, 160))
    >>> sdata["p0s0_he"].shape, sdata["p0s0_if"].shape
    ((3, 128, 160), (8, 128, 160))
    """
    for name, value in (("n_patients", n_patients), ("sections_per_patient", sections_per_patient)):
        if value < 1:
            msg = f"{name}={value} must be at least 1"
            raise InputError(msg)
    placement = Placement(mpp=he_mpp, turn=rotation, error=registration_error, offset=offset)
    usual = SectionConfig(shape=shape, mpp=mpp, immune=immune, placement=placement)
    sections = [
        found
        for i, stream in enumerate(np.random.SeedSequence(seed).spawn(n_patients))
        for found in _patient(stream, f"p{i}", usual, sections_per_patient)
    ]
    images: dict[str, object] = {}
    labels: dict[str, object] = {}
    for item in sections:
        images |= _images(item)
        labels[item.region] = _labels(item)
    sdata = SpatialData(
        images=images, labels=labels, tables={"table": _table(sections), "truth": _truth(sections)}
    )
    sdata.attrs["nimbus_sd"] = {"mpp": mpp}
    return sdata


def _patient(seed: np.random.SeedSequence, patient: str, usual: SectionConfig, n: int) -> list[_Named]:
    """Simulate the sections of one patient: an immune share and a laboratory of its own."""
    rng, *streams = (np.random.default_rng(s) for s in seed.spawn(1 + n))
    immune = float(np.clip(usual.immune * rng.lognormal(0, 0.15), 0, 0.8))
    laboratory = random_stain(rng)
    found = []
    for j, stream in enumerate(streams):
        config = replace(usual, immune=immune, stain=vary_stain(stream, laboratory))
        section = simulate_section(int(stream.integers(2**63)), config)
        he_mpp = usual.placement.mpp or usual.mpp
        found.append(_Named(f"{patient}s{j}", patient, section, usual.mpp, he_mpp))
    return found


def _images(item: _Named) -> dict[str, object]:
    """Both images, each with its own way into the section's coordinate system."""
    plain = {item.name: Identity(), "microns": Scale([item.mpp] * 2, axes=("x", "y"))}
    return {
        f"{item.name}_if": Image2DModel.parse(
            item.section.fluorescence,
            dims=("c", "y", "x"),
            c_coords=list(item.section.channel_names),
            transformations=plain,
            chunks=(1, _CHUNK, _CHUNK),
        ),
        f"{item.name}_he": Image2DModel.parse(
            item.section.he,
            dims=("c", "y", "x"),
            c_coords=["r", "g", "b"],
            transformations=_slide_transformations(item),
            chunks=(3, _CHUNK, _CHUNK),
        ),
    }


def _slide_transformations(item: _Named) -> dict[str, Identity | Scale | Affine]:
    """From the H&E's px to the section's and to µm, as simple as they can be."""
    matrix = item.section.matrix
    if np.allclose(matrix, np.eye(3)):
        return {item.name: Identity(), "microns": Scale([item.mpp] * 2, axes=("x", "y"))}
    in_microns = np.diag([item.mpp, item.mpp, 1.0]) @ matrix
    axes = ("x", "y")
    return {
        item.name: Affine(matrix, input_axes=axes, output_axes=axes),
        "microns": Affine(in_microns, input_axes=axes, output_axes=axes),
    }


def _labels(item: _Named) -> object:
    return Labels2DModel.parse(
        item.section.labels,
        dims=("y", "x"),
        transformations={item.name: Identity(), "microns": Scale([item.mpp] * 2, axes=("x", "y"))},
        chunks=(_CHUNK, _CHUNK),
    )


def _obs(sections: list[_Named], columns: dict[str, list[np.ndarray]]) -> pd.DataFrame:
    """Rows of all sections: whose label it is, and `columns` given section by section."""
    ids = [item.section.instance_ids for item in sections]
    regions = [item.region for item in sections]
    count = [len(i) for i in ids]
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(np.repeat(regions, count), categories=regions),
            "instance_id": np.concatenate(ids),
            "patient": pd.Categorical(np.repeat([item.patient for item in sections], count)),
            "section": pd.Categorical(np.repeat([item.name for item in sections], count)),
            **{name: np.concatenate(parts) for name, parts in columns.items()},
        }
    )
    obs.index = pd.Index(
        [f"{region}_{i}" for region, i in zip(obs["region"], obs["instance_id"], strict=True)]
    )
    return obs


def _annotating(x: np.ndarray, obs: pd.DataFrame, names: tuple[str, ...]) -> ad.AnnData:
    table = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=list(names)))
    regions = list(obs["region"].cat.categories)
    return TableModel.parse(table, region=regions, region_key="region", instance_key="instance_id")


def _table(sections: list[_Named]) -> ad.AnnData:
    """Intensities, as a quantification of the immunofluorescence gives them."""
    areas = [np.bincount(item.section.labels.ravel())[1:].astype(np.int64) for item in sections]
    x = np.concatenate([item.section.expression for item in sections])
    table = _annotating(x, _obs(sections, {"area_px": areas}), sections[0].section.channel_names)
    table.layers["integrated_expression"] = table.X.copy()
    table.obsm["spatial"] = np.concatenate([_centroids(item.section.labels) for item in sections])
    return table


def _centroids(labels: np.ndarray) -> np.ndarray:
    """Centroid (x, y) of labels 1..n in px, pixel corners as coordinates: ``(n, 2)`` float64."""
    flat = labels.ravel()
    area = np.maximum(np.bincount(flat), 1)
    rows, columns = np.indices(labels.shape)
    sums = [np.bincount(flat, weights=axis.ravel()) for axis in (columns, rows)]
    return (np.stack(sums, 1) / area[:, None] + 0.5)[1:]


def _truth(sections: list[_Named]) -> ad.AnnData:
    """Positivity and what was drawn."""
    parts = [item.section for item in sections]
    columns = {
        "cell_type": [s.cell_types for s in parts],
        "registration_error": [np.hypot(*s.error.T) for s in parts],
        **{_column(k): [s.morphology[k] for s in parts] for k in parts[0].morphology},
    }
    obs = _obs(sections, columns)
    obs["cell_type"] = pd.Categorical(obs["cell_type"])
    return _annotating(np.concatenate([s.positive for s in parts]), obs, MARKERS)


def _column(name: str) -> str:
    return f"cytoplasm_{name}" if name in ("halo", "eosin", "basophilia") else f"nucleus_{name}"
