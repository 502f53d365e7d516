"""Loading: nothing is run, nothing is guessed, and what does not fit is said."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from nimbus_sd import models as m
from nimbus_sd._core.errors import ElementNotFoundError, WeightsError
from nimbus_sd.models.loading import read_state_dict, save, sha256
from nimbus_sd.testing import tiny_unet_model

TINY = {"width": 2, "depth": 3}


@pytest.fixture
def folder(tmp_path):
    """A folder with a card and its weights."""
    model = tiny_unet_model(**TINY)
    save(model.net, tmp_path / "tiny", replace(model.card, licence="CC0-1.0"), half=False)
    return tmp_path / "tiny"


@pytest.fixture
def state():
    return tiny_unet_model(**TINY).net.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_folder_comes_back_as_it_was_saved(folder, state):
    loaded = m.load(folder)
    assert same(loaded.net.state_dict(), state)
    assert not loaded.net.training
    assert loaded.name == "tiny"
    assert loaded.path == folder / "weights.safetensors"
    assert loaded.card.sha256 == sha256(loaded.path)
    assert m.load(str(folder)).card == m.load(folder / "weights.safetensors").card == loaded.card
    assert m.load(loaded) is loaded


def test_half_precision_is_stored_and_float32_comes_back(tmp_path, state):
    model = tiny_unet_model(**TINY)
    card = save(model.net, tmp_path, model.card)
    assert read_state_dict(tmp_path / card.weights_file)["final_conv.weight"].dtype == torch.float16
    weight = m.load(tmp_path).net.final_conv.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, state["final_conv.weight"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_bare_file_tells_its_own_width_and_depth(tmp_path, state, suffix, nested):
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if nested else state, path)
    loaded = m.load(path)
    assert loaded.net.config == m.UNetConfig(**TINY)
    assert (loaded.name, loaded.card.stride, loaded.card.halo) == ("mine", 4, loaded.net.config.halo)
    assert (loaded.card.mpp, loaded.card.quantile, loaded.card.rule) == (1.0, 0.9999, "dataset")
    assert same(loaded.net.state_dict(), state)


def test_counters_that_inference_never_reads_may_be_missing(tmp_path, state):
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "w.pt")
    assert m.load(tmp_path / "w.pt").net.final_conv.weight.equal(state["final_conv.weight"])


def test_the_licence_is_shown(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="nimbus_sd"):
        m.load(folder)
    assert "CC0-1.0" in caplog.text


def test_wrong_hash(folder):
    card = m.ModelCard.read(folder)
    replace(card, sha256="0" * 64).write(folder)
    with pytest.raises(
        WeightsError, match=rf"weights\.safetensors: sha256 is {card.sha256}.*'tiny' says 0{{64}}"
    ):
        m.load(folder)


def _missing(state):
    del state["final_conv.bias"]
    return r"missing \(1\): final_conv\.bias"


def _unexpected(state):
    state["head.weight"] = torch.zeros(3)
    return r"unexpected \(1\): head\.weight"


def _misshapen(state):
    state["final_conv.weight"] = torch.zeros(1, 5, 1, 1)
    return r"final_conv\.weight: file \(1, 5, 1, 1\), network \(1, 2, 1, 1\)"


@pytest.mark.parametrize("damage", [_missing, _unexpected, _misshapen])
def test_keys_and_shapes_must_fit(tmp_path, state, damage):
    said = damage(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=rf"w\.pt does not fit.*{said}.*architecture"):
        m.load(tmp_path / "w.pt")


class Bomb:
    """Touches a file when unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle", "beside tensors"])
def test_a_pickle_that_would_run_code_does_not(tmp_path, state, how):
    path, mark = tmp_path / "w.pt", tmp_path / "it-ran"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    elif how == "beside tensors":
        torch.save({**state, "extra": Bomb(mark)}, path)
    else:
        torch.save(Bomb(mark), path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(WeightsError, match=r"w\.pt.*(could run code|damaged)"):
        m.load(path)
    assert not mark.exists()
    # the bomb is live: unpickling without protection sets it off
    pickle.loads(pickle.dumps(Bomb(mark)))  # noqa: S301
    assert mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_truncated_file(tmp_path, state, suffix, share):
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(WeightsError, match=r"w\.(pt|safetensors)"):
        m.load(path)


@given(st.binary(max_size=60), st.sampled_from([".pt", ".safetensors"]))
def test_rubbish_is_a_weights_error(tmp_path, rubbish, suffix):
    path = tmp_path / f"rubbish{suffix}"
    path.write_bytes(rubbish)
    with pytest.raises(WeightsError, match="rubbish"):
        m.load(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(2)])
def test_a_file_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"holds no state dict"):
        m.load(tmp_path / "w.pt")


def test_text_and_flat_weights_are_weights_errors(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"contracting_layers.0.conv2d_0.weight": torch.zeros(3)}, tmp_path / "flat.pt")
    for name in ("text.pt", "flat.pt"):
        with pytest.raises(WeightsError, match=name):
            m.load(tmp_path / name)


def test_another_layout_names_what_it_found(tmp_path):
    torch.save({"encoder.weight": torch.zeros(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"published layout.*encoder\.weight.*card\.json"):
        m.load(tmp_path / "w.pt")


def test_an_unknown_name_lists_the_registered(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ElementNotFoundError, match=r"'nimbus-v9'.*nimbus-v1.*card\.json"):
        m.load("nimbus-v9")


@pytest.mark.parametrize("name", ["gone.pt", "gone.safetensors"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(WeightsError, match=name):
        m.load(str(tmp_path / name))
    with pytest.raises(WeightsError, match="gone"):
        m.load(tmp_path / "gone")


def test_a_folder_without_its_weights_or_card(folder):
    (folder / "weights.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no weight file at .*weights\.safetensors"):
        m.load(folder)
    (folder / "card.json").unlink()
    with pytest.raises(WeightsError, match=r"no model card at .*card\.json"):
        m.load(folder)
