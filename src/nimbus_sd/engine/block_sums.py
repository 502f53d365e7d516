"""From the sums of a block's channel groups to its partials."""

from __future__ import annotations

import numpy as np

from nimbus_sd.arrays import Partials, Tile
from nimbus_sd.engine.block import TileLabels
from nimbus_sd.engine.job import Block, Job
from nimbus_sd.engine.output import check_finite
from nimbus_sd.engine.score_path import GroupSums


class BlockSums:
    """Sums of one block, group by group.

    Parameters
    ----------
    job, block
        Whose.
    name
        Of the model, for messages.
    """

    def __init__(self, job: Job, block: Block, *, name: str) -> None:
        self._config, self._name = job.config, name
        self._sink = job.sinks[block.sample] if job.sinks else None
        self._score: list[np.ndarray] = []
        self._views: list[np.ndarray] = []
        self._intensity: list[np.ndarray] = []
        self._labels: TileLabels | None = None
        self._tile: Tile | None = None
        self._done = 0
        self.difference: float | None = None

    def add(self, found: GroupSums) -> None:
        """Add a group's sums; its probabilities go to the map.

        Raises
        ------
        WeightsError
            If they are no numbers.
        """
        check_finite(found.score, self._name)
        self._tile, self._labels = found.tile, found.labels
        self._score.append(found.score.mean(axis=-1))
        if self._config.per_view:
            self._views.append(found.score)
        if found.intensity is not None:
            self._intensity.append(found.intensity)
        if self._sink is not None and found.maps is not None:
            self._sink.write(found.tile, range(self._done, self._done + len(found.group)), found.maps)
        if found.difference is not None:
            self.difference = found.difference
        self._done += len(found.group)

    def partials(self) -> Partials | None:
        """Sums of all groups; None for a tile without labels."""
        if self._tile is None or self._labels is None:
            return None
        index = self._labels.index
        origin = np.array([o.start for o in self._tile.owned], dtype=np.float64)
        out = {
            "score": np.concatenate(self._score, axis=1),
            "position": index.centroid_sums + origin * index.count[:, None],
            "n_tiles": np.ones((index.ids.size, 1)),
        }
        if self._views:
            out["score_view"] = np.concatenate(self._views, axis=1)
        if self._intensity:
            out["intensity"] = np.concatenate(self._intensity, axis=1)
        return Partials(index.ids, index.count, out)
