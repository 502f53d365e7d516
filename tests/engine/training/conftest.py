"""Small sources and configurations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nimbus_sd.engine.training.config import AugmentConfig, SelectionConfig, TrainConfig
from nimbus_sd.engine.training.simulated import simulated_dataset
from nimbus_sd.engine.training.sources import Preprocessing, TrainTile


class ListSource:
    """A source over a list of tiles, for tests that need odd ones."""

    def __init__(self, tiles):
        self.tiles = tiles
        self.groups = tuple(dict.fromkeys((t.dataset, t.marker) for t in tiles))
        self.fields = frozenset((t.dataset, t.field) for t in tiles)
        self.preprocessing = Preprocessing()

    def __len__(self):
        return len(self.tiles)

    def tile(self, index):
        return self.tiles[index]


def make_tile(seed=0, *, shape=(32, 32), n=6, marker="CD3", field="f0", dataset="d", **options):
    """Bright cells are positive; one cell in four is undefined."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n + 1, (shape[0] // 4, shape[1] // 4)).repeat(4, 0).repeat(4, 1).astype(np.int32)
    target = rng.choice([0.0, 1.0, 0.0, np.nan], n).astype(np.float32)
    bright = np.concatenate([[0], np.nan_to_num(target, nan=0.5)])[labels]
    image = (0.6 * bright + 0.2 * rng.random(shape)).astype(np.float32)
    values = {"mask": (labels > 0).astype(np.uint8), "target": target} | options
    return TrainTile(image=image, labels=labels, dataset=dataset, marker=marker, field=field, **values)


@pytest.fixture
def list_source():
    return ListSource


@pytest.fixture
def tile():
    return make_tile


@pytest.fixture(scope="session")
def dataset():
    """Six simulated fields of three markers: four to train on, two to validate."""
    return simulated_dataset(
        3,
        n_fields=6,
        side=64,
        markers=("CD3", "PanCK", "CD20"),
        platform="ions_denoised",
        splits=["train"] * 4 + ["validation"] * 2,
    )


@pytest.fixture
def config():
    """Both stages, every augmentation, in eight steps."""
    augment = AugmentConfig(
        **dict.fromkeys(("affine", "elastic", "noise", "blur", "contrast", "thinning", "gain"), 0.5)
    )
    return TrainConfig(
        name="tiny",
        architecture={"depth": 3, "width": 2},
        transform="sqrt",
        steps=4,
        robust_steps=4,
        batch=2,
        crop=32,
        learning_rate=1e-2,
        robust_learning_rate=5e-3,
        warmup=1,
        every=2,
        l2_sp=1e-3,
        background=0.2,
        augment=augment,
        selection=replace(SelectionConfig(), quantile_steps=4),
    )
