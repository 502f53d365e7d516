"""The Vitessce configuration points at what the store holds."""

import json

import numpy as np
import pytest
import spatialdata as sd
import zarr

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError


@pytest.fixture
def stored(tmp_path):
    sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(96, 96), channels=["HH3", "CD3", "CD20"])
    truth = sdata["truth"]
    truth.obsm["X_umap"] = np.zeros((truth.n_obs, 2), np.float32)
    truth.obs["free"] = "text"
    sdata.write(tmp_path / "tissue.zarr")
    return sdata


def written(sdata, path, **options):
    return json.loads(nb.io.write_vitessce(sdata, path, table="truth", **options).read_text())


def paths_of(config):
    """Every path within a store that the files' options name, below the file's URL."""
    for file in config["datasets"][0]["files"]:
        store = file["url"].removeprefix("http://localhost:8000/")
        for option in file["options"].values():
            for part in option if isinstance(option, list) else [option]:
                pieces = [part, *part.get("obsSets", [])]
                for piece in pieces:
                    yield from (f"{store}/{piece[k]}" for k in ("path", "tablePath") if k in piece)


def test_every_path_is_in_the_store(stored, tmp_path):
    config = written(stored, tmp_path / "view.json", labels="fov1_labels")
    found = sorted(set(paths_of(config)))
    assert found == [
        "tissue.zarr/images/fov1_image",
        "tissue.zarr/labels/fov1_labels",
        "tissue.zarr/tables/truth",
        "tissue.zarr/tables/truth/X",
        "tissue.zarr/tables/truth/obs/cell_type",
        "tissue.zarr/tables/truth/obsm/X_umap",
    ]
    for path in found:
        zarr.open(tmp_path / path, mode="r")


def test_the_field_is_named_wherever_a_table_of_several_needs_it(stored, tmp_path):
    options = written(stored, tmp_path / "view.json", labels="fov1_labels")["datasets"][0]["files"][0][
        "options"
    ]
    assert options["obsFeatureMatrix"]["region"] == options["obsSets"]["region"] == "fov1_labels"
    assert options["image"]["coordinateSystem"] == options["labels"]["coordinateSystem"]
    system = options["image"]["coordinateSystem"]
    assert system in sd.transformations.get_transformation(stored["fov1_image"], get_all=True)


def test_channels_are_places_in_the_image_and_the_first_colours_the_cells(stored, tmp_path):
    config = written(stored, tmp_path / "view.json", labels="fov0_labels", channels=["CD20", "HH3"])
    space = config["coordinationSpace"]
    assert list(space["spatialTargetC"].values()) == [2, 0]
    assert list(space["featureSelection"].values()) == [["CD20"]]


def test_what_is_not_there_has_no_view(tmp_path):
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(96, 96), channels=["CD3"])
    del sdata["truth"].obs["cell_type"]
    sdata.write(tmp_path / "tissue.zarr")
    config = written(sdata, tmp_path / "view.json")
    views = [view["component"] for view in config["layout"]]
    assert views == ["spatialBeta", "layerControllerBeta", "featureList"]


def test_another_address(stored, tmp_path):
    config = written(stored, tmp_path / "view.json", labels="fov0_labels", url="https://host/data.zarr/")
    assert {f["url"] for f in config["datasets"][0]["files"]} == {
        "https://host/data.zarr",
        "https://host/data.zarr/tables/truth",
    }


def test_the_package_reads_it_back(stored, tmp_path):
    from vitessce import VitessceConfig

    config = written(stored, tmp_path / "view.json", labels="fov0_labels")
    assert VitessceConfig.from_dict(config).to_dict()["layout"] == config["layout"]


def test_bad_input_writes_nothing(stored, tmp_path, monkeypatch):
    file = tmp_path / "view.json"

    def refused(error, match, **options):
        with pytest.raises(error, match=match):
            nb.io.write_vitessce(stored, file, **{"table": "truth", "labels": "fov0_labels", **options})
        assert not file.exists()

    refused(InputError, "several fields", labels=None)
    refused(ElementNotFoundError, "no table 'nimbus'", table="nimbus")
    refused(ElementNotFoundError, "CD99", channels="CD99")
    refused(ElementNotFoundError, "no column 'leiden'", groupby="leiden")
    stored["truth"].obs["leiden"] = "0"
    refused(InputError, "write_table", groupby="leiden")
    stored["truth"].obs["area"] = 1.5
    refused(InputError, "column 'area' is of type float64; cell sets are", groupby=["cell_type", "area"])
    stored["truth"].obs["name"] = [f"cell {i}" for i in range(stored["truth"].n_obs)]
    monkeypatch.setattr("nimbus_sd.io._write_vitessce._MAX_GROUPS", 3)
    refused(InputError, "at most 3 can be cell sets", groupby="name")
    stored["late"] = stored["truth"].copy()
    refused(InputError, "tables/late is not in", table="late")
    with pytest.raises(InputError, match="unknown suffix"):
        nb.io.write_vitessce(stored, tmp_path / "view.txt", table="truth", labels="fov0_labels")
    file.touch()
    with pytest.raises(InputError, match="exists"):
        nb.io.write_vitessce(stored, file, table="truth", labels="fov0_labels")


def test_an_object_in_memory_is_refused(tmp_path):
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(96, 96), channels=["CD3"])
    with pytest.raises(InputError, match="no store"):
        nb.io.write_vitessce(sdata, tmp_path / "view.json", table="truth")
