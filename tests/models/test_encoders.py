"""U-Nets with classification encoders: published sizes, halo by perturbation, folding, cards."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nimbus_sd import models as m
from nimbus_sd._core.errors import InputError, WeightsError
from nimbus_sd.engine.predict import PredictConfig, Predictor
from nimbus_sd.engine.source import ArrayImage, ArrayLabels, Sample
from nimbus_sd.models.architectures import KINDS, config_of
from nimbus_sd.models.efficientnet import EfficientNetEncoder
from nimbus_sd.models.loading import save
from nimbus_sd.models.resnet import ResNetEncoder
from nimbus_sd.testing import random_image, random_labels

RESNET = {"kind": "resnet", "layers": 14, "width": 4}
EFFICIENT = {"kind": "efficientnet", "size": "s", "width": 0.2, "depth": 0.05}
SMALL = [RESNET, EFFICIENT, {"kind": "unet", "width": 2, "depth": 3}]


def fresh(architecture, seed=0):
    """A network in eval mode with norms that differ from one another, in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = m.build(architecture).double().eval()
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor, low in ((layer.weight.data, 0.5), (layer.running_var, 0.5), (layer.bias.data, -0.2)):
                tensor.uniform_(low, low + 1, generator=generator)
            layer.running_mean.uniform_(-0.2, 0.2, generator=generator)
    return net


def noise(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("layers", "published"), [(50, 23_508_032), (101, 42_500_160), (152, 58_143_808)])
def test_resnet_encoders_are_as_large_as_published(layers, published):
    with torch.device("meta"):
        assert size(ResNetEncoder(m.ResNetUNetConfig(layers=layers, in_channels=3))) == published
        net = m.build({"kind": "resnet", "layers": layers, "in_channels": 2})
    assert size(net.encoder) == published - 64 * 49


# the published networks without their classifier and their last 1x1 convolution
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("s", 21_458_488 - 1_281_000 - 330_240),
        ("m", 54_139_356 - 1_281_000 - 657_920),
        ("l", 118_515_272 - 1_281_000 - 821_760),
    ],
)
def test_efficientnet_encoders_are_as_large_as_published(name, published):
    config = m.EfficientNetUNetConfig(size=name, in_channels=3, squeeze_excite=True)
    with torch.device("meta"):
        assert size(EfficientNetEncoder(config)) == published


@pytest.mark.parametrize("architecture", SMALL, ids=lambda a: a["kind"])
@pytest.mark.parametrize("planes", [2, 4])
def test_sides_come_back_and_gradients_flow(architecture, planes):
    net = m.build(architecture | {"in_channels": planes}).train()
    out = net(torch.rand(2, planes, 64, 96))
    assert out.shape == (2, 1, 64, 96)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    "architecture", [*SMALL, EFFICIENT | {"squeeze_excite": True}], ids=lambda a: f"{a['kind']}{len(a)}"
)
def test_folding_changes_neither_the_answer_nor_the_network(architecture):
    net, x = fresh(architecture), noise(2, 2, 64, 96)
    with torch.no_grad():
        before, folded = net(x), net.folded()
        torch.testing.assert_close(folded(x), before, atol=1e-9, rtol=1e-9)
        assert torch.equal(net(x), before)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.modules())
    assert before.std() > 1e-4


def reach(architecture, distance, seed=0):
    """Largest change inside an aligned core when everything further than `distance` from it changes."""
    net = fresh(architecture, seed)
    core = net.config.stride
    start = -(-(distance + 32) // core) * core
    side = 2 * start + core
    x = noise(1, 2, side, side, seed=seed)
    low, high = start - distance, start + core + distance
    changed = 10 * noise(1, 2, side, side, seed=seed + 1)
    changed[..., low:high, low:high] = x[..., low:high, low:high]
    with torch.no_grad():
        inner = (net(x) - net(changed))[..., start : start + core, start : start + core]
    return float(inner.abs().max())


@pytest.mark.parametrize(
    "architecture",
    [RESNET, RESNET | {"layers": 26}, RESNET | {"padding": "zeros"}, EFFICIENT, EFFICIENT | {"depth": 0.2}],
    ids=lambda a: "-".join(map(str, a.values())),
)
def test_the_halo_is_as_wide_as_it_must_be_and_not_wider(architecture):
    config = config_of(architecture)
    assert config.exact
    assert reach(architecture, config.halo) == 0
    assert max(reach(architecture, config.halo - config.stride, seed) for seed in range(3)) > 0


def test_squeeze_and_excitation_sees_everything_and_says_so():
    architecture = EFFICIENT | {"squeeze_excite": True}
    config = config_of(architecture)
    assert not config.exact
    assert reach(architecture, config.halo) > 0


def test_the_halos_of_the_published_depths():
    found = {n: m.ResNetUNetConfig(layers=n).halo for n in (50, 101, 152)}
    assert found == {50: 288, 101: 576, 152: 800}
    assert m.EfficientNetUNetConfig(size="s").halo == 832


def test_old_cards_are_u_nets():
    assert config_of({"width": 8}) == m.UNetConfig(width=8)
    assert set(KINDS) == {"unet", "resnet", "efficientnet"}
    same = m.build({"width": 2, "depth": 3}).state_dict().keys()
    assert same == m.UNet(m.UNetConfig(width=2, depth=3)).state_dict().keys()


@pytest.mark.parametrize("architecture", [RESNET, EFFICIENT], ids=lambda a: a["kind"])
def test_a_card_brings_its_kind_back_and_loading_is_strict(architecture, tmp_path):
    net = fresh(architecture).float()
    card = m.ModelCard("encoder", architecture=architecture, stride=net.config.stride, halo=net.config.halo)
    save(net, tmp_path, card, half=False)
    loaded = m.load(tmp_path)
    assert type(loaded.net) is type(net)
    x = torch.rand(1, 2, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.net(x), net(x))
    state = net.state_dict()
    state.pop("final_conv.bias")
    torch.save(state, tmp_path / "w.pt")
    replace(card, weights_file="w.pt").write(tmp_path)
    with pytest.raises(WeightsError, match=r"missing \(1\): final_conv\.bias"):
        m.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"halo": 64}, "stride 32 and halo 64 don't fit"),
        ({"stride": 16}, "multiple of 32"),
        ({"architecture": EFFICIENT | {"squeeze_excite": True}, "halo": 320}, "set exact=false"),
        ({"architecture": {"kind": "vit"}}, "'x'.*kind 'vit' is unknown; valid: unet, resnet, efficientnet"),
        ({"architecture": RESNET | {"depth": 3}}, "depth.*valid keys: in_channels, out_channels, layers"),
    ],
)
def test_cards_that_don_t_fit_their_network(changes, said, tmp_path):
    net = fresh(RESNET).float()
    save(net, tmp_path, replace(m.ModelCard("x", architecture=RESNET, stride=32, halo=128), **changes))
    with pytest.raises(WeightsError, match=said):
        m.load(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        (RESNET | {"layers": 34}, "one of 14, 26, 50, 101, 152, got 34"),
        (RESNET | {"width": 6}, "multiple of 4"),
        (EFFICIENT | {"size": "xl"}, "one of s, m, l, got 'xl'"),
        (EFFICIENT | {"depth": 0}, "above 0"),
        (EFFICIENT | {"padding": "circular"}, "'reflect' or 'zeros'"),
        (RESNET | {"in_channels": 0}, "in_channels must be a positive int, got 0"),
    ],
)
def test_configs_are_checked(architecture, said):
    with pytest.raises(InputError, match=said):
        m.build(architecture)


@pytest.mark.parametrize("architecture", [RESNET, EFFICIENT], ids=lambda a: a["kind"])
def test_scores_do_not_depend_on_the_tile(architecture):
    net = fresh(architecture).float()
    card = m.ModelCard("encoder", architecture=architecture, stride=32, halo=net.config.halo)
    labels = random_labels((520, 300), n=60)
    image = ArrayImage("i", random_image((1, 520, 300)), ("a",))
    sample = Sample("cells", image, ArrayLabels("l", labels), 1.0)
    scores = []
    for tile in (64, 1024):
        config = PredictConfig(tile=tile, device="cpu", precision="float32")
        found = Predictor(m.LoadedModel(net, card), config).run(sample, ["a"], np.array([900.0]))
        scores.append(found.sums["score"] / found.count[:, None])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    assert scores[0].std() > 1e-4
