"""Models for programs that know no torch: a folder of ONNX files beside the card."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.version import __version__
from nimbus_sd.arrays.cell_context import CONTEXT_NAMES
from nimbus_sd.models.card import CARD_FILE, ModelCard
from nimbus_sd.models.head import CellHead
from nimbus_sd.models.loading import LoadedModel, load
from nimbus_sd.models.onnx_graph import (
    LOWEST_OPSET,
    CellScores,
    Dims,
    Probabilities,
    check_extra,
    check_opset,
    to_onnx,
)

MODEL_FILE, HEAD_FILE = "model.onnx", "head.onnx"
_OURS = {MODEL_FILE, HEAD_FILE, CARD_FILE}
_FACTS = (
    *("name", "mpp", "quantile", "rule", "transform", "mask_rule", "score_rule", "threshold"),
    *("stride", "halo", "exact", "sha256", "licence", "limits"),
)


def export_onnx(
    model: str | Path | LoadedModel,
    path: str | Path,
    *,
    opset: int = LOWEST_OPSET,
    overwrite: bool = False,
) -> Path:
    """Write a model as ONNX, for QuPath, napari plugins, browsers and onnxruntime.

    The folder appears whole or not at all. It holds

    ``model.onnx``
        the network: ``image`` float32 ``(n, 2, y, x)``, normalised marker and cell mask, to
        ``probability`` ``(n, 1, y, x)``. n, y and x are free; y and x must be multiples of
        ``stride``, at least ``minimum``;
    ``head.onnx``
        where the card has a cell head: ``probability``, ``intensity``, ``neighbours`` and
        ``area``, float32 ``(n,)``, and one marker's ``context``, float32 ``(51,)``, to
        ``score`` ``(n,)``;
    ``card.json``
        the model's card, whose hash is that of the weights exported.

    Both ONNX files hold the card in their metadata too, whole (``card``) and by field
    (``name``, ``mpp``, ``quantile``, ``rule``, ``transform``, ``mask_rule``, ``score_rule``,
    ``threshold``, ``stride``, ``minimum``, ``halo``, ``exact``, ``sha256``, ``licence``, ``limits``).
    Needs the extra ``onnx``.

    Parameters
    ----------
    model
        As in :func:`nimbus_sd.models.load`.
    path
        Folder to write.
    opset
        Version of the ONNX operators, from 18.
    overwrite
        Replace an export that is there.

    Returns
    -------
    The folder.

    Raises
    ------
    InputError
        If the opset is not known, the path is taken, or holds other files than an export's.
    MissingExtraError
        If onnx or onnxscript is not installed.
    WeightsError
        If the weights can't be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import nimbus_sd as nb
    >>> from nimbus_sd.testing import tiny_unet_model
    >>> with TemporaryDirectory() as folder:
    ...     out = nb.models.export_onnx(tiny_unet_model(), Path(folder) / "tiny")
    ...     sorted(p.name for p in out.iterdir())
    ['card.json', 'model.onnx']
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    check_extra()
    check_opset(opset)
    loaded = load(model)
    with _whole_folder(path) as folder:
        _write_network(loaded, folder / MODEL_FILE, opset)
        if loaded.head is not None:
            _write_head(loaded.head, loaded.card, folder / HEAD_FILE, opset)
        loaded.card.write(folder)
    return path


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise :class:`InputError` unless an export can be written to `path`."""
    if not path.exists():
        return
    if not path.is_dir():
        msg = f"{path} is a file; an ONNX export is a folder: choose another path"
        raise InputError(msg)
    others = sorted({p.name for p in path.iterdir()} - _OURS)
    if others:
        msg = f"{path} holds other files ({', '.join(others[:3])}) and is left alone; choose another path"
        raise InputError(msg)
    if any(path.iterdir()) and not overwrite:
        msg = f"{path} exists; pass overwrite=True to replace it, or another path"
        raise InputError(msg)


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling to fill; it takes the place of `path` unless there is an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    new, old = (path.with_name(f".{path.name}.{token}.{what}") for what in ("new", "old"))
    new.mkdir()
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _write_network(loaded: LoadedModel, path: Path, opset: int) -> None:
    card, net = loaded.card, loaded.net
    net = net.folded() if hasattr(net, "folded") else net  # type: ignore[operator]
    planes = int(getattr(getattr(net, "config", None), "in_channels", 2))
    rows, columns = torch.export.Dim("rows"), torch.export.Dim("columns")
    dims = {0: torch.export.Dim("n"), 2: card.stride * rows, 3: card.stride * columns}
    # no two sides alike, and none 1: those would be taken for constants
    example = torch.zeros(2, planes, 2 * card.stride, 3 * card.stride)
    proto = to_onnx(
        Probabilities(net).eval(),
        {"image": (example, dims)},
        "probability",
        opset=opset,
        facts=_facts(card),
        axes=("n", "y", "x"),
    )
    path.write_bytes(proto.SerializeToString())


def _write_head(head: CellHead, card: ModelCard, path: Path, opset: int) -> None:
    cells = torch.export.Dim("n")
    names = ("probability", "intensity", "neighbours", "area")
    inputs: dict[str, tuple[torch.Tensor, Dims]] = {
        name: (torch.full((3,), 0.5), {0: cells}) for name in names
    }
    context = torch.linspace(0, 1, len(CONTEXT_NAMES))
    proto = to_onnx(
        CellScores(head).eval(),
        {**inputs, "context": (context, {})},
        "score",
        opset=opset,
        facts={**_facts(card), "context": ",".join(CONTEXT_NAMES)},
        axes=("n",),
    )
    path.write_bytes(proto.SerializeToString())


def _facts(card: ModelCard) -> dict[str, str]:
    """What a program needs that has the ONNX file only."""
    values = asdict(card)
    facts = {name: v if isinstance(v := values[name], str) else json.dumps(v) for name in _FACTS}
    facts["minimum"] = str(max(32, 2 * card.stride))
    facts["written_by"] = f"nimbus-sd {__version__}"
    facts["card"] = json.dumps(values, ensure_ascii=False)
    return facts
