"""The card that travels with every weight file: what the model is, eats and promises."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nimbus_sd._core.errors import InputError, WeightsError
from nimbus_sd.models.folder_kinds import POSITIVITY
from nimbus_sd.models.head import HeadConfig
from nimbus_sd.models.unet import UNetConfig

CARD_FILE = POSITIVITY


@dataclass(frozen=True)
class ModelCard:
    """Everything needed to use, repeat and judge a set of weights.

    Parameters
    ----------
    name
        Registered name.
    architecture
        Arguments of :class:`~nimbus_sd.models.UNetConfig`.
    mpp
        Pixel size in µm at which the network works.
    quantile, rule
        Normalisation: intensity quantile that maps to 1, and how it is fitted
        (``"dataset"`` or ``"fov_mean"``, see :func:`nimbus_sd.pp.normalization`).
    transform
        Applied after ``clip(x / scale, 0, 1)``: ``"identity"`` or ``"sqrt"``.
    mask_rule, score_rule
        How the mask plane is made and how pixels become a cell's score:
        ``"mean_probability"``, or ``"cell_head"``: a small network that reads the mean
        probability and the intensity of a cell beside those of all cells of the dataset.
    head
        Arguments of :class:`~nimbus_sd.models.head.HeadConfig`; empty without a head.
    threshold
        Score above which a cell counts as positive.
    stride, halo, exact
        Tile alignment and context in model px; whether tiled equals whole-image.
    weights_file, weights_url, sha256
        Weight file beside the card, where to fetch it when it is not there
        (``"hub:<repository>@<revision>/<file>"``), and its hash; an empty
        hash means that none is published.
    licence, training_data, command, commit, metrics, limits, citation
        For people.
    """

    name: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    mpp: float = 1.0
    quantile: float = 0.9999
    rule: str = "dataset"
    transform: str = "identity"
    mask_rule: str = "interior"
    score_rule: str = "mean_probability"
    head: Mapping[str, Any] = field(default_factory=dict)
    threshold: float = 0.5
    stride: int = 16
    halo: int = 96
    exact: bool = True
    weights_file: str = "weights.safetensors"
    weights_url: str = ""
    sha256: str = ""
    licence: str = ""
    training_data: str = ""
    command: str = ""
    commit: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    limits: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        choices = {
            "rule": ("dataset", "fov_mean"),
            "transform": ("identity", "sqrt"),
            "mask_rule": ("interior",),
            "score_rule": ("mean_probability", "cell_head"),
        }
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                msg = f"model card {self.name!r}: {name}={getattr(self, name)!r}, valid: {', '.join(valid)}"
                raise WeightsError(msg)
        if bool(self.head) != (self.score_rule == "cell_head"):
            msg = (
                f"model card {self.name!r}: score_rule={self.score_rule!r} with head={dict(self.head)}; a "
                "head goes with score_rule='cell_head' and nothing else"
            )
            raise WeightsError(msg)
        numbers = {
            "mpp": (0, math.inf),
            "quantile": (0, 1),
            "threshold": (0, 1),
            "stride": (1, math.inf),
            "halo": (0, math.inf),
        }
        for name, (low, high) in numbers.items():
            value = getattr(self, name)
            if (
                not isinstance(value, int | float)
                or not low <= value <= high
                or (name == "mpp" and value == 0)
            ):
                msg = f"model card {self.name!r}: {name}={value!r} must be a number from {low} to {high}"
                raise WeightsError(msg)

    @property
    def unet_config(self) -> UNetConfig:
        """The architecture as a config object."""
        try:
            return UNetConfig(**self.architecture)
        except (TypeError, InputError) as error:
            valid = ", ".join(f.name for f in fields(UNetConfig))
            given = dict(self.architecture)
            msg = f"model card {self.name!r}: architecture {given}: {error}; valid keys: {valid}"
            raise WeightsError(msg) from error

    @property
    def head_config(self) -> HeadConfig | None:
        """The head as a config object, if there is one."""
        if not self.head:
            return None
        try:
            return HeadConfig(**self.head)
        except (TypeError, InputError) as error:
            msg = f"model card {self.name!r}: head {dict(self.head)}: {error}"
            raise WeightsError(msg) from error

    def to_json(self) -> str:
        """The card as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def write(self, folder: str | Path) -> Path:
        """Write ``card.json`` into `folder` and return its path."""
        path = Path(folder) / CARD_FILE
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: str | Path) -> ModelCard:
        """Read a card from a file or from the folder that holds ``card.json``.

        Raises
        ------
        WeightsError
            If there is no card, it is not JSON, or holds unknown keys.
        """
        path = Path(path)
        path = path / CARD_FILE if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            msg = f"no model card at {path}; a weights folder holds {CARD_FILE} beside its weight file"
            raise WeightsError(msg) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            msg = f"{path} is not valid JSON ({error}); write it with ModelCard.write"
            raise WeightsError(msg) from error
        if not isinstance(values, dict):
            msg = f"{path} holds no JSON object; write it with ModelCard.write"
            raise WeightsError(msg)
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "name" not in values:
            what = f"unknown keys {unknown}" if unknown else "no 'name'"
            msg = f"{path}: {what}; valid keys: {', '.join(sorted(known))}"
            raise WeightsError(msg)
        return cls(**values)
