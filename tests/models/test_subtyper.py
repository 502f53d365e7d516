"""Sub-typing networks, their cards and folders, and where pretrained weights come from."""

import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.models.test_hovernet import published_state

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, MissingExtraError, NimbusWarning, OfflineError, WeightsError
from nimbus_sd.models.subtype_backbones import BACKBONES, backbone_config, build_backbone
from nimbus_sd.models.subtype_weights import HUB, load_pretrained
from nimbus_sd.models.subtyper import (
    SubtypeCard,
    SubtypeConfig,
    SubtypeModel,
    SubtypeNet,
    architecture_of,
    build_subtyper,
    check_patch,
    is_stored,
    load_subtyper,
    save_subtyper,
)

CONVNEXT = {"kind": "convnext", "depths": [1, 1], "hidden_sizes": [8, 16]}
V2 = CONVNEXT | {"kind": "convnextv2"}
VIT = {
    **{"kind": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "image_size": 32, "patch_size": 8},
}
HOVERNET = {"kind": "hovernet", "width": 2, "units": [1, 1, 1, 1]}
TINY = {"convnext": CONVNEXT, "convnextv2": V2, "vit": VIT, "hovernet": HOVERNET}


def tiny(backbone="convnext", *, seed=0, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SubtypeNet(SubtypeConfig(backbone=TINY[backbone], hidden=8, **kwargs)).eval()


def moved(parameter):
    return parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)


def patches(n=3, side=32, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("multitask", [True, False])
def test_a_logit_per_marker_whatever_the_backbone(kind, multitask):
    net = tiny(kind, multitask=multitask)
    with torch.no_grad():
        for side in (32, 48, 112):
            assert net(patches(side=side)).shape == (3, 4)
    assert len(net.backbones) == (1 if multitask else 4)


@pytest.mark.parametrize("multitask", [True, False])
def test_markers_share_a_backbone_or_have_their_own(multitask):
    net = tiny(multitask=multitask).train()
    net(patches())[:, 2].sum().backward()
    touched = [any(moved(p) for p in b.parameters()) for b in net.backbones]
    assert touched == ([True] if multitask else [False, False, True, False])
    assert [moved(h[0].weight) for h in net.heads] == [False, False, True, False]


def test_colours_are_normalised_inside():
    net = build_backbone(CONVNEXT | {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}).eval()
    bare = build_backbone(CONVNEXT).eval()
    bare.load_state_dict(net.state_dict())
    x = patches()
    scaled = (x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(net(x), bare(scaled))


def test_a_vit_takes_other_sides_in_both_ways():
    ways = {p: build_backbone(VIT | {"position": p}).eval() for p in ("interpolate", "resize")}
    ways["resize"].load_state_dict(ways["interpolate"].state_dict())
    x, same = patches(side=48), patches(side=32)
    with torch.no_grad():
        torch.testing.assert_close(ways["resize"](same), ways["interpolate"](same))
        small = F.interpolate(x, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
        torch.testing.assert_close(ways["resize"](x), ways["interpolate"](small))
        assert (ways["resize"](x) - ways["interpolate"](x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", BACKBONES)
def test_every_name_builds(name):
    config = backbone_config(name)
    with torch.device("meta"):
        net = build_backbone(config)
    n = sum(p.numel() for p in net.parameters()) / 1e6
    sizes = {"base": (85, 90), "phikon": (85, 87), "hovernet": (25, 27), "tiny": (27, 29), "atto": (3, 4)}
    low, high = next((v for k, v in sizes.items() if k in name), (4, 60))
    assert low < n < high


@pytest.mark.parametrize("kind", TINY)
def test_a_folder_gives_back_the_model(tmp_path, kind):
    net = tiny(kind, multitask=False)
    card = SubtypeCard("mine", architecture_of(net), mpp=0.5, patch=48, thresholds={"CD4": 0.3})
    saved = nb.models.save_subtyper(SubtypeModel(net, card), tmp_path / "m")
    found = nb.models.load_subtyper(tmp_path / "m")
    assert is_stored(saved)
    assert found.card == saved.card
    assert found.card.thresholds == {"CD45": 0.5, "CD3e": 0.5, "CD4": 0.3, "CD8a": 0.5}
    assert found.markers == ("CD45", "CD3e", "CD4", "CD8a")
    with torch.no_grad():
        assert torch.equal(found.net(patches()), net(patches()))


def test_damage_is_noticed(tmp_path):
    model = save_subtyper(load_subtyper(tiny()), tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert not is_stored(model)
    with pytest.raises(WeightsError, match="sha256"):
        load_subtyper(tmp_path)
    (tmp_path / "subtyper.json").write_text('{"name": "a", "colour": 1}')
    with pytest.raises(WeightsError, match="valid keys: name, architecture"):
        load_subtyper(tmp_path)
    with pytest.raises(WeightsError, match=r"nb\.tl\.train_subtyper makes one"):
        load_subtyper(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"pass what nb\.tl\.train_subtyper returned"):
        load_subtyper(3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mpp": 0}, "mpp=0"),
        ({"patch": 0}, "patch=0"),
        ({"thresholds": {"CD45": 1.5}}, "CD45"),
        ({"thresholds": {"CD99": 0.5}}, "CD99"),
        ({"hierarchy": {"CD4": "CD99"}}, "CD99"),
    ],
)
def test_cards_that_make_no_sense(change, match):
    with pytest.raises(WeightsError, match=match):
        SubtypeCard("mine", architecture_of(tiny()), **change)


@pytest.mark.parametrize(
    ("architecture", "match"),
    [
        ({"backbone": "resnet"}, "convnext-tiny"),
        ({"backbone": {"kind": "resnet"}}, "'kind' is one of"),
        ({"backbone": CONVNEXT | {"colour": 1}}, r"no parameter \['colour'\]"),
        ({"backbone": CONVNEXT | {"hidden_sizes": [8]}}, "one of each per stage"),
        ({"backbone": VIT | {"num_attention_heads": 3}}, "can't be divided by 3 heads"),
        ({"backbone": CONVNEXT | {"mean": [0.5]}}, "three numbers"),
        ({"backbone": VIT | {"position": "guess"}}, "position='guess'"),
        ({"backbone": HOVERNET, "markers": ["a", "a"]}, "each once"),
        ({"backbone": HOVERNET, "hidden": 0}, "hidden=0"),
        ({"backbone": HOVERNET, "colour": 1}, "valid keys: markers"),
    ],
)
def test_architectures_that_can_not_be(architecture, match):
    with pytest.raises(InputError, match=match):
        build_subtyper(architecture)


@pytest.mark.parametrize("kind", ["convnext", "convnextv2", "vit"])
def test_pretrained_from_a_folder_of_transformers(tmp_path, kind):
    theirs, net = build_backbone(TINY[kind]), tiny(kind, multitask=False, seed=1)
    theirs.net.save_pretrained(tmp_path)
    heads = {k: v.clone() for k, v in net.heads.state_dict().items()}
    assert load_pretrained(net, TINY[kind], tmp_path) == str(tmp_path)
    for backbone in net.backbones:
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in backbone.state_dict().items())
    assert all(torch.equal(v, heads[k]) for k, v in net.heads.state_dict().items())


@pytest.mark.parametrize(("theirs", "mine"), [("convnext", "convnextv2"), ("convnextv2", "convnext")])
def test_weights_of_a_relative_are_refused_and_not_filled_up_at_random(tmp_path, theirs, mine):
    build_backbone(TINY[theirs]).net.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"of another network than ConvNext.*it lacks \d+ of its tensors"):
        load_pretrained(tiny(mine), TINY[mine], tmp_path)


def test_weights_of_other_shapes_are_refused(tmp_path):
    build_backbone(CONVNEXT | {"hidden_sizes": [8, 24]}).net.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"does not fit the network|of another network"):
        load_pretrained(tiny(), CONVNEXT, tmp_path)


@pytest.mark.parametrize("kind", TINY)
def test_patches_that_are_too_small(kind):
    net = tiny(kind).train()
    check_patch(net, 32)
    assert net.training
    if kind != "hovernet":  # it pads
        with pytest.raises(InputError, match="patches of 3 px are too small for this"):
            check_patch(net, 3)


def test_pretrained_from_the_state_dict_of_a_classifier(tmp_path):
    theirs, net = build_backbone(CONVNEXT), tiny(seed=1)
    state = {f"convnext.{k}": v.contiguous() for k, v in theirs.net.state_dict().items()}
    save_file(state | {"classifier.weight": torch.zeros(2, 16)}, tmp_path / "w.safetensors")
    load_pretrained(net, CONVNEXT, tmp_path / "w.safetensors")
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in net.backbones[0].state_dict().items())


def test_pretrained_from_a_public_hovernet_checkpoint(tmp_path):
    config = {"kind": "hovernet", "width": 4, "units": [2, 1, 2, 1]}
    net = SubtypeNet(SubtypeConfig(backbone=config, hidden=8))
    torch.save({"desc": published_state()}, tmp_path / "hovernet.tar")
    load_pretrained(net, config, tmp_path / "hovernet.tar")
    assert torch.equal(net.backbones[0].net.conv0["conv"].weight, published_state()["conv0./.weight"])
    with pytest.raises(WeightsError, match="does not fit the network"):
        load_pretrained(tiny("hovernet"), HOVERNET, tmp_path / "hovernet.tar")


def test_pretrained_from_the_hub_s_cache(tmp_path, monkeypatch):
    """The cache as huggingface_hub lays it out; no network is asked."""
    import huggingface_hub.constants

    theirs = build_backbone(backbone_config("convnextv2-atto"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--facebook--convnextv2-atto-1k-224"
    theirs.net.save_pretrained(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setattr(
            huggingface_hub.constants, name, str(tmp_path) if name == "HF_HUB_CACHE" else True
        )
    net = SubtypeNet(SubtypeConfig(backbone="convnextv2-atto", hidden=8))
    origin = load_pretrained(net, "convnextv2-atto", pretrained=True)
    assert origin == f"facebook/convnextv2-atto-1k-224@{commit}"
    assert load_pretrained(net, "convnextv2-atto", origin) == origin  # as the record says
    with pytest.raises(OfflineError):
        load_pretrained(net, "convnextv2-atto", origin.replace("0123", "4567"))
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in net.backbones[0].state_dict().items())


def test_without_a_network_nothing_is_passed_off_as_pretrained(tmp_path, monkeypatch):
    import huggingface_hub.constants

    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setattr(
            huggingface_hub.constants, name, str(tmp_path) if name == "HF_HUB_CACHE" else True
        )
    net = SubtypeNet(SubtypeConfig(backbone="convnextv2-atto", hidden=8))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(OfflineError, match="hf download facebook/convnextv2-atto-1k-224"):
        load_pretrained(net, "convnextv2-atto", pretrained=True)
    with pytest.warns(NimbusWarning, match="starts from random weights"):
        assert load_pretrained(net, "convnextv2-atto", None) == "random"
    assert load_pretrained(net, "convnextv2-atto", pretrained=False) == "random"
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(WeightsError, match="has no weights on the hub"):
        load_pretrained(net, "hovernet", pretrained=True)
    with pytest.raises(WeightsError, match="holds no weights that transformers reads"):
        load_pretrained(net, "convnextv2-atto", tmp_path)
    assert set(HUB) <= set(BACKBONES)


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"nimbus-sd\[he\]"):
        build_backbone(CONVNEXT)
    assert build_backbone(HOVERNET).n_features == 32
