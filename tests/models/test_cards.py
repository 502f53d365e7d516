"""Cards, the registry, and downloads that can't be had."""

import json
import os
import subprocess
import sys

import pytest

import nimbus_sd as nb
from nimbus_sd import models as m
from nimbus_sd._core.errors import WeightsError
from nimbus_sd.models.hub import cache_folder, fetch
from nimbus_sd.models.registry import WEIGHTS, cards, get_card


@pytest.mark.parametrize("name", m.list())
def test_every_registered_card_is_whole(name, tmp_path):
    card = get_card(name)
    assert card.name == name
    config = card.unet_config
    assert card.stride % config.stride == 0
    assert card.halo >= config.halo or not card.exact
    for field in ("licence", "training_data", "limits"):
        assert getattr(card, field), field
    assert card.weights_url or (WEIGHTS / name / card.weights_file).is_file()
    card.write(tmp_path)
    assert m.ModelCard.read(tmp_path) == m.ModelCard.read(tmp_path / "card.json") == card
    assert "latest" not in json.dumps(card.weights_url)


def test_bundled_weights_load_and_have_their_hash():
    for name in [n for n in m.list() if (WEIGHTS / n).is_dir()]:
        card = get_card(name)
        assert len(card.sha256) == 64
        assert m.load(name).card == card


def test_the_published_network_is_registered():
    assert "nimbus-v1" in nb.models.list()
    assert len(set(m.list())) == len(m.list())
    assert list(cards()) == m.list()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "mean"}, r"rule='mean', valid: dataset, fov_mean"),
        ({"transform": "log"}, r"transform='log', valid: identity, sqrt"),
        ({"mask_rule": "all"}, r"mask_rule='all', valid: interior"),
        ({"score_rule": "max"}, r"score_rule='max'"),
        ({"mpp": 0}, r"mpp=0"),
        ({"mpp": "1 um"}, r"mpp='1 um'"),
        ({"quantile": 99.9}, r"quantile=99.9"),
        ({"stride": 0}, r"stride=0"),
        ({"halo": None}, r"halo=None"),
        ({"treshold": 0.5}, r"unknown keys \['treshold'\]; valid keys: .*threshold"),
    ],
)
def test_a_wrong_value_names_the_valid_ones(tmp_path, change, said):
    values = {"name": "mine", **change}
    (tmp_path / "card.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=said):
        m.ModelCard.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[1]", "no JSON object"),
        (b"{}", r"no 'name'; valid keys: architecture"),
    ],
)
def test_a_damaged_card(tmp_path, text, said):
    (tmp_path / "card.json").write_bytes(text)
    with pytest.raises(WeightsError, match=said):
        m.ModelCard.read(tmp_path)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"architecture": {"wdth": 2}}, r"wdth.*valid keys: in_channels"),
        ({"architecture": {"depth": 0}}, r"depth must be a positive int"),
        ({"architecture": {"depth": 6}}, r"stride 16 and halo 96.*multiple of 32"),
        ({"architecture": {"depth": 5}, "halo": 80}, r"stride 16 and halo 80.*at least 96"),
    ],
)
def test_a_card_that_does_not_fit_its_architecture(tmp_path, card, said):
    m.ModelCard(name="mine", **card).write(tmp_path)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(WeightsError, match=said):
        m.load(tmp_path)


def test_a_registered_model_without_a_source():
    with pytest.raises(WeightsError, match=r"'mine' has no weight file.*weights_url"):
        fetch(m.ModelCard(name="mine"))


def test_the_cache_follows_its_variable_and_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("NIMBUS_SD_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    path = tmp_path / "nimbus-v1" / "V1.pt"
    path.parent.mkdir()
    path.write_bytes(b"cached")
    assert fetch(get_card("nimbus-v1")) == path


def test_offline_says_where_to_put_the_file(tmp_path):
    # a process of its own: the hub client reads the variable when it is imported
    code = (
        "import nimbus_sd as nb\nfrom nimbus_sd._core.errors import OfflineError\n"
        "try:\n    nb.models.load('nimbus-v1')\nexcept OfflineError as error:\n    print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NIMBUS_SD_CACHE": str(tmp_path)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    assert "could not download the weights of 'nimbus-v1'" in out.stdout
    assert str(tmp_path / "nimbus-v1" / "V1.pt") in out.stdout
    assert "model=" in out.stdout
