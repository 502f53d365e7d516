"""Fit the cell head: cells of studies that the U-Net has not seen, described by what it says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.cell_context import cell_features, fit_context, nearest_cells, neighbour_mean
from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.training.batch import GroupIndex, collate
from nimbus_sd.engine.training.sources import TileSource, TrainTile
from nimbus_sd.engine.training.step import logits_of
from nimbus_sd.models.head import CellHead, HeadConfig

AnyArray = NDArray[Any]


@dataclass(frozen=True)
class HeadTraining:
    """How the head is fitted.

    Parameters
    ----------
    hidden
        Width of its layers.
    epochs, batch, learning_rate, weight_decay
        AdamW with one cycle.
    gain_low, gain_high
        Limits of the log-uniform factor on a marker's intensities: real scales are set by
        finer and noisier pixels than the simulated ones.
    cells
        Most cells of a marker that are learnt from.
    smoothing
        Label smoothing.
    seed
        Of gains, cells and weights.
    """

    hidden: int = 48
    epochs: int = 20
    batch: int = 4096
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    gain_low: float = 0.5
    gain_high: float = 1.4
    cells: int = 800
    smoothing: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class MarkerCells:
    """One marker's cells in one or more fields.

    Parameters
    ----------
    score, intensity, neighbours, area, target
        ``(n,)`` each: mean probability, mean intensity, that of the nearest cells, px, label.
    field
        ``(n,)`` int, which field.
    """

    score: AnyArray
    intensity: AnyArray
    neighbours: AnyArray
    area: AnyArray
    target: AnyArray
    field: AnyArray

    def take(self, rows: AnyArray) -> MarkerCells:
        """Some of the cells."""
        return MarkerCells(**{k: v[rows] for k, v in vars(self).items()})

    def features(self) -> AnyArray:
        """Features, with the context of these very cells."""
        context = fit_context(self.score, self.intensity)
        return cell_features(
            self.score, self.intensity, neighbours=self.neighbours, area=self.area, context=context
        )


@torch.inference_mode()
def _probabilities(
    net: nn.Module, tiles: list[TrainTile], *, transform: str, precision: str, device: torch.device
) -> AnyArray:
    batch = collate(tiles, GroupIndex(tuple({(t.dataset, t.marker) for t in tiles}))).to(device)
    logits = logits_of(net, batch, transform=transform, precision=PRECISIONS[precision])
    return torch.sigmoid(logits[:, 0].float()).cpu().numpy()


def _cells(tile: TrainTile, probability: AnyArray, field: int) -> MarkerCells:
    """Reduce one tile."""
    flat, n = tile.labels.ravel(), len(tile.target) + 1
    area = np.bincount(flat, minlength=n)[1:]
    total = np.maximum(area, 1)

    def mean(plane: AnyArray) -> AnyArray:
        return np.bincount(flat, weights=plane.ravel(), minlength=n)[1:] / total

    there = area > 0
    rows, columns = np.divmod(np.arange(flat.size), tile.labels.shape[1])
    position = np.stack([mean(rows), mean(columns)], axis=1)[there]
    intensity = mean(tile.image)[there]
    return MarkerCells(
        score=mean(probability)[there],
        intensity=intensity,
        neighbours=neighbour_mean(intensity, nearest_cells(position)),
        area=area[there].astype(np.float64),
        target=tile.target[there],
        field=np.full(int(there.sum()), field),
    )


def marker_cells(
    net: nn.Module,
    source: TileSource,
    config: HeadTraining,
    *,
    transform: str = "sqrt",
    precision: str = "bfloat16",
    device: torch.device | None = None,
) -> Iterator[MarkerCells]:
    """Run the network over every study and yield its markers' cells, all fields together.

    Parameters
    ----------
    net
        In eval mode.
    source
        Tiles ordered by study.
    config
        For the gains.
    transform, precision, device
        Of the network.
    """
    rng = np.random.default_rng(config.seed)
    where = device or torch.device("cpu")
    tiles = (source.tile(i) for i in range(len(source)))
    for _, study in groupby(tiles, key=lambda t: t.dataset):
        found: dict[str, list[MarkerCells]] = {}
        gains: dict[str, float] = {}
        for field, (_, members) in enumerate(groupby(study, key=lambda t: t.field)):
            each = []
            for tile in members:
                if tile.marker not in gains:
                    gains[tile.marker] = float(
                        np.exp(rng.uniform(np.log(config.gain_low), np.log(config.gain_high)))
                    )
                each.append(replace(tile, image=tile.image.astype(np.float32) * gains[tile.marker]))
            scores = _probabilities(net, each, transform=transform, precision=precision, device=where)
            for tile, probability in zip(each, scores, strict=True):
                found.setdefault(tile.marker, []).append(_cells(tile, probability, field))
        for parts in found.values():
            yield MarkerCells(**{k: np.concatenate([vars(p)[k] for p in parts]) for k in vars(parts[0])})


def _examples(markers: list[MarkerCells], config: HeadTraining) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Features, targets and weights; every marker once over all fields, and once over one field alone."""
    rng = np.random.default_rng((config.seed, 1))
    parts = []
    for marker in markers:
        alone = marker.take(marker.field == rng.choice(np.unique(marker.field)))
        for cells, most in ((marker, config.cells), (alone, config.cells // 4)):
            known = np.flatnonzero(~np.isnan(cells.target))
            rows = rng.permutation(known)[:most]
            if len(rows):
                weight = np.full(len(rows), 1 / np.sqrt(len(rows)))
                parts.append((cells.features()[rows], cells.target[rows], weight))
    if not parts:
        msg = "no cell of the studies has a label"
        raise InputError(msg)
    x, y, w = (np.concatenate(column) for column in zip(*parts, strict=True))
    return x, y.astype(np.float32), (w / w.mean()).astype(np.float32)


def fit_head(markers: list[MarkerCells], config: HeadTraining | None = None) -> CellHead:
    """Fit a head to labelled cells.

    Parameters
    ----------
    markers
        From :func:`marker_cells`.
    config
        How.

    Returns
    -------
    The head in eval mode; the same input gives the same weights.
    """
    config = config or HeadTraining()
    features, target, weight = (torch.from_numpy(a) for a in _examples(markers, config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = CellHead(HeadConfig(hidden=config.hidden))
        head.mean.copy_(features.mean(0))
        head.spread.copy_(features.std(0) + 1e-3)
        steps = config.epochs * max(len(features) // config.batch, 1)
        optimiser = torch.optim.AdamW(
            head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps + 1)
        soft = target * (1 - config.smoothing) + config.smoothing / 2
        done = 0
        while done < steps:
            for rows in torch.randperm(len(features)).split(config.batch):
                if done == steps or (len(rows) < config.batch and done):
                    break
                each = binary_cross_entropy_with_logits(head(features[rows]), soft[rows], reduction="none")
                loss = (each * weight[rows]).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                done += 1
    return head.eval()
