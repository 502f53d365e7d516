"""What identifies the data of a run: cells, markers, scales, and the pixels where files tell."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from nimbus_sd.engine.embedding.patches import PatchSample
from nimbus_sd.engine.embedding.supply import fingerprint
from nimbus_sd.engine.source import ArrayImage


@dataclass(frozen=True)
class StoredImage(ArrayImage):
    """An image whose pixels are known by a stamp."""

    stamp: str = "first"

    @property
    def fingerprint(self):
        return self.stamp


def make(image):
    return PatchSample("cells", image, np.arange(3), np.full((3, 2), 5.0), 0.325)


@pytest.fixture
def sample():
    return make(StoredImage("he", np.zeros((3, 20, 20), np.uint8), ("r", "g", "b")))


def told(*samples, markers=("r", "g"), scale=(1, 1)):
    return fingerprint(samples, markers, np.array(scale))


def test_the_same_data_have_one_fingerprint(sample):
    assert told(sample) == told(replace(sample))
    # which does not hang on pixels that nothing tells of
    dark, light = (ArrayImage("he", np.full((3, 20, 20), v, np.uint8), ("r", "g", "b")) for v in (0, 9))
    assert told(make(dark)) == told(make(light))


def test_other_data_have_another(sample):
    others = [
        told(sample, markers=("g", "r")),
        told(sample, scale=(1, 2)),
        told(sample, sample),
        told(replace(sample, ids=np.arange(1, 4))),
        told(replace(sample, centers=sample.centers + 1)),
        told(replace(sample, region="nuclei")),
        told(replace(sample, image=replace(sample.image, stamp="second"))),
        told(replace(sample, image=ArrayImage("he", sample.image.array, sample.image.channels))),
    ]
    assert len({told(sample), *others}) == len(others) + 1
