"""``nimbus-sd models``: the list, cards, and where weights lie."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest

import nimbus_sd as nb
from nimbus_sd.models.registry import get_card


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NIMBUS_SD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_list_says_where_weights_are(nimbus, facts, cache):
    found = facts("models")
    assert [m["name"] for m in found["models"]] == nb.models.list()
    assert found["cache"] == str(cache)
    places = {m["name"]: (m["weights"], m["path"]) for m in found["models"]}
    assert places["nimbus-v1"] == ("downloaded on first use", None)
    assert Path(places["nimbus-sd-s"][1]).is_file()
    (cache / "nimbus-v1").mkdir(parents=True)
    (cache / "nimbus-v1" / "V1.pt").write_bytes(b"weights")
    code, out, _ = nimbus("models")
    assert code == 0
    assert any("nimbus-v1" in line and "in the cache" in line for line in out.splitlines())
    assert f"cache: {cache}" in out


def test_a_card_in_lines_and_as_json(nimbus, facts, tmp_path):
    card = get_card("nimbus-sd-s")
    assert facts("models", "nimbus-sd-s") == json.loads(card.to_json()) == asdict(card)
    lines = nimbus("models", "nimbus-sd-s")[1].splitlines()
    assert lines[0].split() == ["name", "nimbus-sd-s"]
    assert any(line.split() == ["sha256", card.sha256] for line in lines)
    assert max(map(len, lines)) <= 100
    card.write(tmp_path)
    assert facts("models", tmp_path)["sha256"] == card.sha256


def test_cards_of_other_kinds_of_folders(nimbus, facts, tmp_path):
    net = nb.models.cim.CIM(nb.models.cim.CIMConfig(markers=("CD3", "CD8")))
    nb.models.save_embedding(nb.models.load_embedding(net), tmp_path / "mine")
    assert facts("models", tmp_path / "mine")["architecture"]["markers"] == ["CD3", "CD8"]
    code, out, err = nimbus("models", tmp_path / "mine", "--onnx", tmp_path / "onnx")
    assert (code, out, "nb.models.load_embedding" in err) == (1, "", True)


def test_fetching_says_the_path_and_checks_the_file(facts):
    found = facts("models", "nimbus-sd-s", "--fetch")
    file = Path(found["path"])
    assert hashlib.sha256(file.read_bytes()).hexdigest() == found["sha256"]
    assert found["bytes"] == file.stat().st_size


def test_fetching_without_a_network_says_where_to_put_the_file(nimbus, monkeypatch, cache):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = nimbus("models", "nimbus-v1", "--fetch")
    assert (code, out) == (1, "")
    assert str(cache / "nimbus-v1" / "V1.pt") in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "neither registered nor a path"),
        (("--fetch",), "for one model"),
        (("nothing", "--fetch"), "neither registered nor a path"),
    ],
)
def test_bad_calls(nimbus, arguments, said):
    code, out, err = nimbus("models", *arguments)
    assert (code, out) == (1, "")
    assert said in err
