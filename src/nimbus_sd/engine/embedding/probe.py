"""How good an embedding is while it is trained, judged on cells that are held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nimbus_sd.engine.embedding.augment import centre, views
from nimbus_sd.engine.embedding.inputs import normalise
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig

_PIECE = 256  # patches per forward pass
_PART = 1_000_000  # views of a probe are never those of a training step


@dataclass(frozen=True)
class Probe:
    """Held-out patches.

    Parameters
    ----------
    patches
        Raw ``(n, c, S, S)``.
    labels
        int64 ``(n,)`` classes; None judges without labels.
    neighbours
        k of the nearest neighbours, at most; a twentieth of the cells where these are few.
    """

    patches: np.ndarray
    labels: np.ndarray | None = None
    neighbours: int = 20

    @property
    def kind(self) -> str:
        """What :func:`measure` gives."""
        return (
            "balanced accuracy of k-NN" if self.labels is not None else "share of views that find their twin"
        )


def measure(
    net: nn.Module, probe: Probe, config: EmbeddingTrainConfig, *, scale: np.ndarray, device: torch.device
) -> float:
    """Judge a network.

    With labels: balanced accuracy of :func:`knn_accuracy` on the embeddings of the
    untouched patches. Without: two views are drawn of every patch, the same at each
    call; the share of patches whose first view's nearest neighbour (cosine) among all
    second views is its own. By chance that is 1 / n.

    Parameters
    ----------
    net
        Embeds ``(b, c, y, x)``; left in eval mode.
    probe
        Patches, and labels if there are any.
    config
        Transform, crop, augmentations.
    scale
        ``(c,)`` intensity that maps to 1.
    device
        Of the network.
    """
    net.eval()
    crop = config.embedded_crop
    found: list[list[Tensor]] = []
    with torch.no_grad():
        for i in range(0, len(probe.patches), _PIECE):
            raw = torch.from_numpy(probe.patches[i : i + _PIECE]).to(device)
            x = normalise(raw, scale, config.transform)
            if probe.labels is not None:
                seen = [centre(x, crop)]
            else:
                seen = views(x, config.views, (crop, crop), seed=config.seed, step=i, part=_PART)
            found.append([net(v.contiguous(memory_format=torch.channels_last)).float().cpu() for v in seen])
    embedded = [torch.cat(each) for each in zip(*found, strict=True)]
    if probe.labels is None:
        return twins_found(*embedded)
    k = min(probe.neighbours, max(len(probe.patches) // 20, 1))
    return knn_accuracy(embedded[0], probe.labels, k=k)


def knn_accuracy(embedding: Tensor, labels: np.ndarray, *, k: int) -> float:
    """Balanced leave-one-out accuracy of a majority vote among the k nearest by cosine.

    Parameters
    ----------
    embedding
        ``(n, d)``.
    labels
        int ``(n,)``, classes from 0. Of classes with equally many votes the one whose
        votes are nearer wins; classes of a single cell do not count.
    k
        Neighbours.
    """
    n = len(labels)
    classes = torch.from_numpy(np.asarray(labels, np.int64))
    unit = F.normalize(embedding.double(), dim=1)
    similar = unit @ unit.T
    similar.fill_diagonal_(-torch.inf)
    near, which = similar.topk(min(k, n - 1), dim=1)
    votes = torch.zeros((n, int(classes.max()) + 1), dtype=torch.float64)
    # at most 1 / 4 in all: it settles ties and no more
    votes.scatter_add_(1, classes[which], 1 + near / (4 * k))
    hit = (votes.argmax(1) == classes).double()
    count = torch.bincount(classes)
    per_class = torch.bincount(classes, weights=hit)[count > 1] / count[count > 1]
    return float(per_class.mean()) if len(per_class) else 0.0


def twins_found(first: Tensor, second: Tensor) -> float:
    """Share of rows of `first` whose nearest row of `second` (cosine) is the one at the same place."""
    similar = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    return float((similar.argmax(1) == torch.arange(len(first))).double().mean())
