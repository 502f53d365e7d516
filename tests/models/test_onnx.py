"""ONNX exports: the same numbers in onnxruntime, at any size; folders that are whole or not there."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import nimbus_sd as nb
from nimbus_sd import models as m
from nimbus_sd._core.errors import InputError, MissingExtraError
from nimbus_sd.arrays.cell_context import CONTEXT_NAMES, cell_features, fit_context
from nimbus_sd.engine.head import head_scores
from nimbus_sd.models import onnx_graph
from nimbus_sd.models.card import ModelCard
from nimbus_sd.models.loading import LoadedModel
from nimbus_sd.testing import tiny_unet_model

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "onnx.md"
NETWORKS = {
    "unet": {"width": 8, "depth": 3},
    "zeros": {"width": 4, "depth": 2, "padding": "zeros", "in_channels": 3, "out_channels": 2},
    "resnet": {"kind": "resnet", "layers": 14, "width": 4},
    "efficientnet": {"kind": "efficientnet", "width": 0.25, "depth": 0.1, "squeeze_excite": True},
}


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """The bundled model's export."""
    return m.export_onnx("nimbus-sd-s", tmp_path_factory.mktemp("onnx") / "nimbus-onnx")


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def random_model(architecture):
    """Random weights whose batch norms have seen something."""
    torch.manual_seed(0)
    net = m.build(architecture)
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(2, net.config.in_channels, 64, 64))
    exact = getattr(net.config, "exact", True)
    card = ModelCard(
        name="random", architecture=architecture, stride=net.config.stride, halo=net.config.halo, exact=exact
    )
    return LoadedModel(net.eval(), card)


def check(run, net, shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
    with torch.no_grad():
        expected = net(image).sigmoid().numpy()
    (found,) = run.run(["probability"], {"image": image.numpy()})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 48, 80), (3, 96, 32), (1, 512, 512)])
def test_the_bundled_network_gives_the_same_probabilities(bundled, shape):
    n, y, x = shape
    check(session(bundled / "model.onnx"), m.load("nimbus-sd-s").net, (n, 2, y, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_architecture_is_exported_in_silence(tmp_path, capfd, name):
    model = random_model(NETWORKS[name])
    m.export_onnx(model, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["card.json", "model.onnx"]
    run = session(tmp_path / "out" / "model.onnx")
    planes, stride = model.net.config.in_channels, model.card.stride
    for n, rows, columns in ((1, 2, 2), (2, 3, 5), (3, 6, 2)):
        check(run, model.net, (n, planes, rows * stride, columns * stride))


@pytest.mark.parametrize("n", [1, 2, 500])
@pytest.mark.parametrize("empty", [0.0, 0.6])
def test_the_head_with_its_features_gives_the_same_scores(bundled, n, empty):
    rng = np.random.default_rng(n)
    probability, neighbours = rng.random(n), rng.random(n) * 0.2
    intensity = np.where(rng.random(n) < empty, 0, rng.random(n) ** 3)
    probability[0], intensity[-1] = 1.0, intensity.max()
    given = {"probability": probability, "intensity": intensity, "neighbours": neighbours}
    given = {k: v.astype(np.float32) for k, v in {**given, "area": rng.integers(1, 300, n)}.items()}
    context = fit_context(probability, intensity)
    features = cell_features(
        *(given[k].astype(float) for k in ("probability", "intensity")),
        neighbours=given["neighbours"].astype(float),
        area=given["area"].astype(float),
        context=context,
    )
    expected = head_scores(m.load("nimbus-sd-s").head, features)
    (found,) = session(bundled / "head.onnx").run(["score"], {**given, "context": context})
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_files_say_what_they_are_and_not_where_they_were_made(bundled):
    card = m.load("nimbus-sd-s").card
    assert ModelCard.read(bundled) == card
    for name in ("model.onnx", "head.onnx"):
        model = onnx.load(bundled / name)
        facts = {p.key: p.value for p in model.metadata_props}
        assert facts["name"] == "nimbus-sd-s"
        assert facts["sha256"] == card.sha256
        assert (facts["mpp"], facts["stride"], facts["halo"], facts["minimum"]) == ("1.0", "16", "96", "32")
        assert (facts["transform"], facts["exact"], facts["licence"]) == ("sqrt", "true", "BSD-3-Clause")
        assert json.loads(facts["card"]) == json.loads(card.to_json())
        content = (bundled / name).read_bytes()
        for trace in ("site-packages", str(Path.home()), str(Path(nb.__file__).parent)):
            assert trace.encode() not in content
    assert facts["context"].split(",") == list(CONTEXT_NAMES)
    assert [i.shape for i in session(bundled / "model.onnx").get_inputs()] == [["n", 2, "y", "x"]]


@pytest.mark.filterwarnings("ignore::nimbus_sd._core.errors.NimbusWarning")  # flags of so small fields
@pytest.mark.parametrize("mpp", [0.65, 2.0])
def test_the_recipe_of_the_page_gives_what_predict_gives(bundled, tmp_path, monkeypatch, mpp):
    monkeypatch.chdir(bundled.parent)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    recipe: dict = {}
    for block in blocks:
        if "nimbus_sd" not in block and "simulated" not in block and "import onnx\n" not in block:
            exec(compile(block, "onnx.md", "exec"), recipe)  # noqa: S102
    sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(90, 133), mpp=mpp, channels=["CD3", "PanCK"])
    factor = nb.arrays.rescale.scale_factor(mpp, float(recipe["card"]["mpp"]))
    planes = [sdata[f"fov{i}_image"].sel(c="CD3").values.astype(float) for i in range(2)]
    labels = [sdata[f"fov{i}_labels"].values for i in range(2)]
    scale = np.quantile(np.concatenate([p.ravel() for p in planes]), float(recipe["card"]["quantile"]))
    found = [recipe["cells"](p, l, scale, factor) for p, l in zip(planes, labels, strict=True)]
    together = {k: np.concatenate([means[k] for _, means in found]) for k in found[0][1]}
    context = recipe["context"](together["probability"], together["intensity"])
    nb.tl.predict(sdata, channels=["CD3"], precision="float32", progress=False)
    assert np.concatenate([ids for ids, _ in found]).tolist() == sdata["nimbus"].obs["instance_id"].tolist()
    expected = sdata["nimbus"].X[:, 0]
    assert expected.std() > 0.05
    np.testing.assert_allclose(recipe["head_scores"](together, context), expected, atol=1e-4, rtol=0)


def test_what_is_there_is_only_replaced_when_asked(tmp_path):
    model = tiny_unet_model(width=2, depth=2)
    out = m.export_onnx(model, tmp_path / "deep" / "out", opset=20)
    assert onnx.load(out / "model.onnx").opset_import[0].version == 20
    (out / "head.onnx").write_bytes(b"of another model")
    with pytest.raises(InputError, match="overwrite=True"):
        m.export_onnx(model, out)
    m.export_onnx(model, out, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ["card.json", "model.onnx"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_folders_and_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for path, words in ((tmp_path / "mine", "other files"), (tmp_path / "mine" / "notes.txt", "is a file")):
        with pytest.raises(InputError, match=words):
            m.export_onnx("nimbus-sd-s", path, overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


class Undecided(nn.Module):
    """Its path depends on the pixels: no graph can hold that."""

    def forward(self, x):
        """(b, 2, y, x) to (b, 1, y, x)."""
        return x[:, :1] if float(x.sum()) > 0 else x[:, 1:]


def test_a_failed_export_leaves_nothing_behind(tmp_path):
    model = LoadedModel(Undecided(), ModelCard(name="undecided"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.onnx").write_bytes(b"old")
    for name in ("new", "old"):
        with pytest.raises(InputError, match="undecided"):
            m.export_onnx(model, tmp_path / name, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "model.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("opset", [17, 99, True, "18"])
def test_an_opset_must_be_one_that_can_be_written(tmp_path, opset):
    with pytest.raises(InputError, match="18 to"):
        m.export_onnx("nimbus-sd-s", tmp_path / "out", opset=opset)
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"nimbus-sd\[onnx\]"):
        m.export_onnx("nimbus-sd-s", tmp_path / "out")
