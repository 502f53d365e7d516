"""Our output opens in the viewers of the ecosystem, coloured by score; no screen is needed."""

import json
import os
import time

import numpy as np
import pytest

pytestmark = [pytest.mark.ecosystem("viewers"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A simulated field, scored by the bundled model, as it lies on disk."""
    import nimbus_sd as nb

    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(256, 256), channels=["CD3", "CD8", "CD20"])
    path = tmp_path_factory.mktemp("viewers") / "tissue.zarr"
    sdata.write(path)
    nb.tl.predict(sdata, device="cpu", precision="float32", progress=False, write=True)
    sdata["nimbus"].obs["state"] = np.where(sdata["nimbus"][:, "CD3"].X[:, 0] > 0.5, "CD3+", "CD3-")
    sdata["nimbus"].obs["state"] = sdata["nimbus"].obs["state"].astype("category")
    nb.io.write_table(sdata, "nimbus")
    return path


@pytest.fixture
def sdata(store):
    import spatialdata as sd

    return sd.read_zarr(store)


def test_spatialdata_plot_colours_labels_by_score(sdata, tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401 - adds .pl

    fig, ax = plt.subplots(figsize=(4, 4), dpi=128)
    ax.set_position([0, 0, 1, 1])
    sdata.pl.render_labels(
        "fov0_labels", color="CD3", table_name="nimbus", cmap="viridis", fill_alpha=1.0
    ).pl.show(coordinate_systems="fov0", ax=ax, colorbar=False, title="")
    ax.set_axis_off()
    ax.set_position([0, 0, 1, 1])
    ax.set_xlim(0, 256)
    ax.set_ylim(256, 0)
    fig.savefig(tmp_path / "labels.png")
    picture = plt.imread(tmp_path / "labels.png")
    plt.close(fig)
    # viridis gets greener with the value: read the colour at every cell's centre
    scores = sdata["nimbus"][:, "CD3"].X[:, 0]
    labels = np.asarray(sdata["fov0_labels"].data)
    seen, expected = [], []
    for cell, score in zip(sdata["nimbus"].obs["instance_id"], scores, strict=True):
        y, x = np.argwhere(labels == cell).mean(0).astype(int)
        if labels[y, x] == cell:
            seen.append(picture[2 * y + 1, 2 * x + 1, 1])
            expected.append(score)
    assert len(seen) > 100
    assert np.corrcoef(seen, expected)[0, 1] > 0.98


def _until(condition, seconds=120):
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        QApplication.processEvents()
        time.sleep(0.02)


def test_napari_spatialdata_colours_labels_by_score(sdata, monkeypatch):
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from napari._vispy.layers import base, image, labels

    for module in (base, image, labels):  # offscreen there is no OpenGL that knows its limits
        monkeypatch.setattr(module, "get_max_texture_sizes", lambda: (16384, 2048), raising=False)
    from napari_spatialdata import Interactive
    from napari_spatialdata._view import QtAdataViewWidget

    window = Interactive(sdata, headless=True)
    viewer = window._viewer
    for name in ("fov0_image", "fov0_labels"):
        window.add_element(name, "fov0")
        _until(lambda name=name: name in viewer.layers)
        _until(lambda: not window._sdata_widget.worker_thread.isRunning())
    layer = viewer.layers["fov0_labels"]
    viewer.layers.selection.select_only(layer)
    widget = QtAdataViewWidget(viewer)
    widget.table_name_widget.setCurrentText("nimbus")
    assert [widget.var_widget.item(i).text() for i in range(widget.var_widget.count())] == [
        "CD3",
        "CD8",
        "CD20",
    ]
    widget.var_widget._onAction(["CD3"])
    found = sdata["nimbus"]
    green = [layer.colormap.color_dict[cell][1] for cell in found.obs["instance_id"]]
    assert np.corrcoef(green, found[:, "CD3"].X[:, 0])[0, 1] > 0.98
    # a column of ours, as groups
    widget.obs_widget._onAction(["state"])
    groups = found.obs.groupby("state", observed=True)["instance_id"]
    colours = {state: {str(layer.colormap.color_dict[i]) for i in ids} for state, ids in groups}
    assert {len(c) for c in colours.values()} == {1}
    assert len(set.union(*colours.values())) == 2


def test_vitessce_takes_our_configuration(store, sdata, tmp_path):
    from vitessce import VitessceConfig

    import nimbus_sd as nb

    written = json.loads(nb.io.write_vitessce(sdata, tmp_path / "view.json").read_text())
    config = VitessceConfig.from_dict(written)
    again = config.to_dict(base_url="http://localhost:8000")
    (dataset,) = again["datasets"]
    assert dataset["files"] == written["datasets"][0]["files"]
    assert {view["component"] for view in again["layout"]} == {
        view["component"] for view in written["layout"]
    }
    paths = [
        option[key]
        for file in dataset["files"]
        for options in file["options"].values()
        for option in (options if isinstance(options, list) else [options])
        for key in ("path", "tablePath")
        if key in option
    ]
    assert len(paths) >= 3
    missing = [path for path in paths if not (store / path).is_dir()]
    assert not missing
    # the widget is what a notebook would show
    assert config.widget() is not None
