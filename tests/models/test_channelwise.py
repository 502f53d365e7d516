"""Embedding networks: every feature belongs to one marker until the last layer."""

import json
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, WeightsError
from nimbus_sd.models.channelwise import magnitude
from nimbus_sd.models.cim import CIM, CIMConfig
from nimbus_sd.models.embedding import EmbeddingCard, EmbeddingModel, architecture_of, build_embedding
from nimbus_sd.models.next_channel import NeXtChannel, NeXtChannelConfig

MARKERS = ("CD3", "CD8", "CD20", "PanCK")
KINDS = [(NeXtChannel, NeXtChannelConfig), (CIM, CIMConfig)]


def used(kind, config, seed=0, **parameters):
    """A network in float64 whose norms have seen some patches."""
    torch.manual_seed(seed)
    net = kind(config(markers=MARKERS, **parameters)).double()
    for _ in range(3):
        net(torch.rand(8, 4, 16, 16, dtype=torch.float64))
    return net


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("kind", "config"), KINDS)
@settings(max_examples=15, deadline=None)
@given(
    marker=st.integers(0, 3),
    side=st.sampled_from([12, 13, 14, 16, 32]),
    seed=st.integers(0, 1000),
    size=st.floats(1e-6, 1e3),
)
def test_a_marker_changes_its_own_features_and_no_others(kind, config, training, marker, side, seed, size):
    net = used(kind, config, seed).train(training)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 4, side, side, dtype=torch.float64, generator=generator)
    other = x.clone()
    other[:, marker] += size * torch.rand(3, side, side, dtype=torch.float64, generator=generator)
    a, b = net.activations(x), net.activations(other)
    rest = [m for m in range(4) if m != marker]
    assert torch.equal(a[:, rest], b[:, rest])
    if size > 1e-2:
        assert not torch.equal(a[:, marker], b[:, marker])


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_no_gradient_crosses_markers_before_the_last_layer(kind, config):
    net = used(kind, config)
    x = torch.rand(2, 4, 16, 16, dtype=torch.float64, requires_grad=True)
    net.activations(x)[:, 2].square().sum().backward()
    assert x.grad[:, [0, 1, 3]].abs().max() == 0 < x.grad[:, 2].abs().max()


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_the_embedding_mixes_all_markers(kind, config):
    net = used(kind, config).eval()
    x = torch.rand(2, 4, 16, 16, dtype=torch.float64)
    for marker in range(4):
        other = x.clone()
        other[:, marker] = 0
        assert (net(x) != net(other)).float().mean() > 0.9


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_an_empty_channel_has_activation_zero(kind, config):
    net = used(kind, config).eval()
    x = torch.rand(5, 4, 16, 16, dtype=torch.float64)
    x[:, 1] = 0
    found = magnitude(net.activations(x))
    assert found.shape == (5, 4)
    np.testing.assert_allclose(found[:, 1].detach(), 0, atol=1e-12)
    assert (found[:, [0, 2, 3]] > 0).all()


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_forward_is_the_last_layer_on_the_interpretability_stage(kind, config):
    net = used(kind, config).eval()
    x = torch.rand(3, 4, 20, 16, dtype=torch.float64)
    activations = net.activations(x)
    assert activations.shape == (3, 4, net.config.features)
    flat = activations.reshape(3, -1)
    torch.testing.assert_close(net(x), flat @ net.last.weight.T + net.last.bias)


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_patches_are_embedded_by_themselves(kind, config):
    net = used(kind, config).eval()
    x = torch.rand(6, 4, 16, 16, dtype=torch.float64)
    alone = torch.cat([net(x[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(net(x), alone)


def test_names_others_rely_on():
    net = nb.models.next_channel.NeXtChannel(
        nb.models.next_channel.NeXtChannelConfig(markers=("a", "b"), size=32, width=2, embedding=256)
    )
    x = torch.rand(3, 2, 32, 32)
    assert net(x).shape == (3, 256)
    assert net.activations(x).shape == (3, 2, net.config.features)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"markers": ()}, "markers="),
        ({"markers": ("a", "a")}, "each once"),
        ({"markers": "CD3"}, "markers="),
        ({"width": 0}, "width=0"),
        ({"embedding": 2.5}, "embedding=2.5"),
        ({"depths": ()}, "depths="),
    ],
)
def test_bad_architectures_say_what_is_valid(change, words):
    with pytest.raises(InputError, match=words):
        NeXtChannelConfig(**{"markers": MARKERS, **change})


def test_bad_input_says_what_is_valid():
    net = NeXtChannel(NeXtChannelConfig(markers=MARKERS))
    with pytest.raises(InputError, match=r"\(b, 4, y, x\)"):
        net(torch.rand(2, 3, 16, 16))
    with pytest.raises(InputError, match="at least 8 px"):
        net(torch.rand(2, 4, 7, 16))


@pytest.mark.parametrize("kind", ["next_channel", "cim"])
def test_save_and_load(tmp_path, kind):
    net = build_embedding({"kind": kind, "markers": MARKERS, "width": 3})
    net(torch.rand(8, 4, 16, 16))
    net.eval()
    card = EmbeddingCard("mine", architecture_of(net), scale=dict.fromkeys(MARKERS, 2.0), mpp=0.5)
    saved = nb.models.save_embedding(EmbeddingModel(net, card), tmp_path / "m")
    found = nb.models.load_embedding(tmp_path / "m")
    assert found.card == saved.card
    assert found.markers == MARKERS
    assert not found.net.training
    x = torch.rand(2, 4, 16, 16)
    torch.testing.assert_close(found.net(x), net(x), rtol=0, atol=0)
    assert nb.models.load_embedding(found) is found
    assert repr(found) == f"EmbeddingModel('mine', 4 markers, {str(tmp_path / 'm')!r})"


def test_a_save_that_fails_leaves_the_old_model(tmp_path):
    old, new = (nb.models.load_embedding(build_embedding({"markers": MARKERS})) for _ in range(2))
    saved = nb.models.save_embedding(old, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # as on a full disk
    try:
        with pytest.raises((OSError, SafetensorError)):
            nb.models.save_embedding(new, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    broken = replace(new, card=replace(new.card, training={"a set": {1}}))
    with pytest.raises(TypeError, match="not JSON serializable"):
        nb.models.save_embedding(broken, tmp_path)
    found = nb.models.load_embedding(tmp_path)
    assert found.card == saved.card
    torch.testing.assert_close(found.net.state_dict(), old.net.state_dict(), rtol=0, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["embedding.json", "weights.safetensors"]
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_bare_network_is_taken():
    net = NeXtChannel(NeXtChannelConfig(markers=MARKERS, size=24))
    found = nb.models.load_embedding(net)
    assert net.training
    assert not found.net.training
    assert (found.card.size, found.card.crop, dict(found.card.scale)) == (24, 24, {})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_network_on_a_gpu_is_copied_to_the_cpu():
    net = NeXtChannel(NeXtChannelConfig(markers=MARKERS)).cuda()
    assert {p.device.type for p in nb.models.load_embedding(net).net.parameters()} == {"cpu"}
    assert {p.device.type for p in net.parameters()} == {"cuda"}


def test_damaged_models_are_refused(tmp_path):
    net = build_embedding({"markers": MARKERS})
    model = nb.models.save_embedding(
        EmbeddingModel(net, EmbeddingCard("mine", architecture_of(net))), tmp_path
    )
    values = json.loads((tmp_path / "embedding.json").read_text())
    for change, words in [
        ({"sha256": "0" * 64}, "sha256"),
        ({"unheard": 1}, "valid keys"),
        ({"transform": "log"}, "transform"),
        ({"crop": 40}, "crop=40"),
        ({"architecture": {"kind": "vit", "markers": MARKERS}}, "unknown"),
        ({"architecture": {"markers": MARKERS, "width": 5}}, "shapes differ"),
        ({"architecture": {"markers": MARKERS, "depth": 5}}, "valid keys"),
    ]:
        (tmp_path / "embedding.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(WeightsError, match=words):
            nb.models.load_embedding(tmp_path)
    (tmp_path / "embedding.json").unlink()
    with pytest.raises(WeightsError, match=r"no embedding model"):
        nb.models.load_embedding(tmp_path)
    with pytest.raises(InputError, match="train_embedding"):
        nb.models.load_embedding(3)
    assert replace(model.card, name="x").name == "x"
    with pytest.raises(WeightsError, match=r"nb\.tl\.predict"):
        nb.models.load_embedding("nimbus-sd-s")
