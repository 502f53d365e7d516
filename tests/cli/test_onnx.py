"""``nimbus-sd models NAME --onnx OUT``: a folder of ONNX files, and refusals that touch nothing."""

import json

import pytest
from typer.testing import CliRunner

from nimbus_sd.cli import app
from nimbus_sd.models.loading import save
from nimbus_sd.testing import tiny_unet_model

runner = CliRunner()


@pytest.fixture
def folder(tmp_path):
    """A small model's folder."""
    model = tiny_unet_model(width=2, depth=2)
    save(model.net, tmp_path / "tiny", model.card)
    return tmp_path / "tiny"


def test_a_model_is_exported_and_the_answer_is_json(folder, tmp_path):
    out = tmp_path / "out"
    result = runner.invoke(app, ["models", str(folder), "--onnx", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["files"] == ["card.json", "model.onnx"]
    assert (out / "model.onnx").stat().st_size > 1000


def test_what_is_there_is_left_alone(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    result = runner.invoke(app, ["models", str(folder), "--onnx", str(tmp_path / "out"), "--overwrite"])
    assert result.exit_code != 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
