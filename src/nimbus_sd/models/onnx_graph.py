"""From torch modules to ONNX graphs without traces of the machine that wrote them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError, MissingExtraError
from nimbus_sd.arrays.cell_context import LEVELS
from nimbus_sd.models.head import CellHead

if TYPE_CHECKING:
    from onnx import ModelProto

LOWEST_OPSET = 18
"""What torch's exporter writes without converting afterwards."""
Dims = dict[int, Any]
"""Dimension to :class:`torch.export.Dim`."""


def check_extra() -> None:
    """Raise :class:`MissingExtraError` unless what torch's exporter needs is installed."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        msg = f"an ONNX export needs {' and '.join(missing)}: pip install 'nimbus-sd[onnx]'"
        raise MissingExtraError(msg)


def check_opset(opset: int) -> None:
    """Raise :class:`InputError` unless the installed exporter writes that version of the operators."""
    from onnx.defs import onnx_opset_version

    highest = min(onnx_opset_version(), _highest_of_torch())
    if isinstance(opset, bool) or not isinstance(opset, int) or not LOWEST_OPSET <= opset <= highest:
        msg = f"opset={opset!r}; valid with what is installed: {LOWEST_OPSET} to {highest}"
        raise InputError(msg)


def _highest_of_torch() -> int:
    from torch.onnx import _constants  # not public, and older versions lack it

    return int(getattr(_constants, "ONNX_MAX_OPSET", 20))


class Probabilities(nn.Module):
    """A network's logits as probabilities.

    Parameters
    ----------
    network
        ``(n, c, y, x)`` to logits ``(n, k, y, x)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(n, c, y, x) to probabilities (n, k, y, x)."""
        return torch.sigmoid(self.network(image))


class CellScores(nn.Module):
    """The cell head with its features: :func:`nimbus_sd.arrays.cell_context.cell_features` in torch.

    Parameters
    ----------
    head
        Of the model.
    """

    levels: Tensor
    exact: Tensor

    def __init__(self, head: CellHead) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("levels", torch.from_numpy(LEVELS))
        # torch's exporter rounds plain numbers to float32, which a logarithm near 0 shows
        self.register_buffer("exact", torch.tensor([1e-4, 1 - 1e-4, 1.001], dtype=torch.float64))
        self.median, self.top, self.peak = (int((level > LEVELS).sum()) for level in (0.5, 0.99, 0.999))

    def forward(
        self, probability: Tensor, intensity: Tensor, neighbours: Tensor, area: Tensor, context: Tensor
    ) -> Tensor:
        """Four times (n,), and one marker's context, to scores (n,)."""
        low, high, above_one = self.exact.unbind()
        p = probability.double().maximum(low).minimum(high)
        s, around = intensity.double().clamp(min=0).sqrt(), neighbours.double().clamp(min=0).sqrt()
        quantiles = context.double()[: len(self.levels)]
        negative, positive, spread, _, _, otsu = context.double()[len(self.levels) :].unbind()
        rank = self._rank(s, quantiles)
        z = (s - negative) / (spread + 0.01)
        features = [
            torch.log(p / (1 - p)),
            s,
            torch.log(s * s + 1e-3),
            around,
            s - around,
            torch.log(area.double() + 10),
            torch.log(rank + 1e-3),
            torch.log(above_one - rank),
            *(torch.log((s + 0.01) / (quantiles[i] + 0.01)) for i in (self.top, self.peak, self.median)),
            ((s - negative) / (positive - negative + 0.02)).clamp(-3, 5),
            torch.sign(z) * torch.log1p(z.abs()),
            torch.log((s + 0.01) / (otsu + 0.01)),
        ]
        return torch.sigmoid(self.head(torch.stack(features, dim=1).float()))

    def _rank(self, s: Tensor, quantiles: Tensor) -> Tensor:
        """Levels interpolated at `s`: the parts of all intervals that lie below it, added up."""
        low, width = quantiles[:-1], quantiles.diff()
        above = s[:, None] - low
        part = torch.where(width > 0, (above / width.clamp(min=1e-30)).clamp(0, 1), (above >= 0).double())
        return self.levels[0] + (part * self.levels.diff()).sum(dim=1)


def to_onnx(
    module: nn.Module,
    inputs: Mapping[str, tuple[Tensor, Dims]],
    output: str,
    *,
    opset: int,
    facts: Mapping[str, str],
    axes: Sequence[str],
) -> ModelProto:
    """Export a module.

    Parameters
    ----------
    module
        In eval mode, on the CPU.
    inputs
        Per argument an example and its dynamic dimensions; a tensor given twice would be taken
        for one input.
    output
        Name of the output.
    opset
        Version of the operators.
    facts
        Written into the model's metadata.
    axes
        What the inputs' and the output's dynamic dimensions are called, in order.

    Returns
    -------
    A checked model.

    Raises
    ------
    InputError
        If the module can't be written as a graph.
    """
    import onnx

    try:
        exported = _exported(module, inputs, output, opset)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        msg = (
            f"model {facts.get('name')!r} can't be written as an ONNX graph ({reason}): what its layers do "
            "may depend on the size of the input, but not on its values"
        )
        raise InputError(msg) from error
    model: ModelProto = exported
    _anonymise(model, axes)
    onnx.helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model, full_check=True)
    return model


def _exported(
    module: nn.Module, inputs: Mapping[str, tuple[Tensor, Dims]], output: str, opset: int
) -> ModelProto:
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            module,
            tuple(example for example, _ in inputs.values()),
            dynamic_shapes={name: dict(dims) or None for name, (_, dims) in inputs.items()},
            strict=False,
        )
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=[output],
        )
    return exported.model_proto


def _anonymise(model: ModelProto, axes: Sequence[str]) -> None:
    """Drop traces (they hold paths) and sizes of what lies between; name the dynamic dimensions."""
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    for value in (*graph.input, *graph.output):
        dynamic = [dim for dim in value.type.tensor_type.shape.dim if not dim.HasField("dim_value")]
        for dim, name in zip(dynamic, axes, strict=False):
            dim.dim_param = name


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of itself: a missing torchvision, a deprecation inside torch.export."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        log.setLevel(level)
