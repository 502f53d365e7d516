"""Which weights a name means, and that cached files stay what they were."""

from dataclasses import replace

import pytest
import torch

from nimbus_sd import models as m
from nimbus_sd._core.errors import ElementNotFoundError, WeightsError
from nimbus_sd.models import registry
from nimbus_sd.models.hub import check_recorded
from nimbus_sd.models.loading import save, sha256
from nimbus_sd.models.next_channel import NeXtChannel, NeXtChannelConfig
from nimbus_sd.models.subtyper import SubtypeConfig, SubtypeNet
from nimbus_sd.testing import tiny_unet_model


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder ``nimbus-sd-s`` with other weights in the working directory."""
    monkeypatch.chdir(tmp_path)
    model = tiny_unet_model(width=2, depth=3)
    save(model.net, tmp_path / "nimbus-sd-s", replace(model.card, name="impostor"))
    save(model.net, tmp_path / "mine", model.card)
    return tmp_path


def test_a_folder_does_not_shadow_a_registered_name(tiny):
    assert m.load("nimbus-sd-s").name == "nimbus-sd-s"
    for path in ("./nimbus-sd-s", tiny / "nimbus-sd-s", str(tiny / "nimbus-sd-s")):
        # "./" is lost in a Path, so the text decides
        assert m.load(path).name == "impostor"
    assert m.load("mine").name == "tiny"
    with pytest.raises(ElementNotFoundError, match="neither registered nor a path"):
        m.load("yours")


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A registered model without a published hash whose file lies in the cache."""
    monkeypatch.setenv("NIMBUS_SD_CACHE", str(tmp_path / "cache"))
    model = tiny_unet_model(width=2, depth=3)
    card = replace(model.card, name="remote", weights_file="w.pt", weights_url="hub:a/b@main/w.pt", sha256="")
    monkeypatch.setattr(registry, "_NIMBUS_V1", card)
    path = tmp_path / "cache" / "remote" / "w.pt"
    path.parent.mkdir(parents=True)
    torch.save(model.net.state_dict(), path)
    return path, model.net


def test_the_first_load_notes_the_hash_and_later_ones_compare(cached):
    path, net = cached
    found = m.load("remote")
    record = path.with_name("w.pt.sha256")
    assert found.path == path
    assert record.read_text().strip() == found.card.sha256 == sha256(path)
    m.load("remote")
    with torch.no_grad():
        net.final_conv.bias += 1
    torch.save(net.state_dict(), path)
    with pytest.raises(WeightsError, match=r"w\.pt: sha256 is .* first used.*delete both files"):
        m.load("remote")
    record.unlink()
    assert m.load("remote").card.sha256 == sha256(path)


def test_nothing_is_noted_beside_files_outside_the_cache(cached, tmp_path):
    path = tmp_path / "elsewhere.pt"
    path.write_bytes(b"x")
    check_recorded(path, "0")
    assert not path.with_name("elsewhere.pt.sha256").exists()


@pytest.fixture
def kinds(tmp_path):
    """A folder of each kind of model."""
    model = tiny_unet_model(width=2, depth=3)
    save(model.net, tmp_path / "load", model.card)
    net = NeXtChannel(NeXtChannelConfig(markers=("CD3",)))
    m.save_embedding(m.load_embedding(net), tmp_path / "load_embedding")
    net = SubtypeNet(SubtypeConfig(backbone={"kind": "hovernet", "width": 2}))
    m.save_subtyper(m.load_subtyper(net), tmp_path / "load_subtyper")
    return tmp_path


@pytest.mark.parametrize("held", ["load", "load_embedding", "load_subtyper"])
@pytest.mark.parametrize("asked", ["load", "load_embedding", "load_subtyper"])
def test_a_folder_of_another_kind_names_what_reads_it(kinds, asked, held):
    reads = getattr(m, asked)
    if asked == held:
        reads(kinds / held)
        return
    with pytest.raises(WeightsError, match=rf"{held} holds an? .*: nb\.models\.{held} reads it, nb\.tl\."):
        reads(kinds / held)


def test_a_weight_file_beside_another_kind_of_card(kinds):
    with pytest.raises(WeightsError, match=r"nb\.models\.load_subtyper reads it"):
        m.load(kinds / "load_subtyper" / "weights.safetensors")
    # a published file beside such a card is still one
    other = tiny_unet_model(width=2, depth=3)
    torch.save(other.net.state_dict(), kinds / "load_subtyper" / "mine.pt")
    assert m.load(kinds / "load_subtyper" / "mine.pt").name == "mine"
