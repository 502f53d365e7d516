"""Reports of a run: a CSV log, TensorBoard where it is installed, a progress bar."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

log = logging.getLogger("nimbus_sd")

COLUMNS = (
    "step",
    "stage",
    "learning_rate",
    "loss",
    "kept_negative",
    "kept_positive",
    "f1",
    "precision",
    "recall",
    "specificity",
    "f1_groups",
    "steps_per_s",
)


class Report:
    """Writes rows to ``log.csv`` and, where TensorBoard is installed, to ``tensorboard/``.

    Parameters
    ----------
    folder
        Of the run.
    step
        Where the run goes on; rows beyond it come from steps that will be repeated and are removed.
    tensorboard
        Whether to write its files.
    columns
        Of the log: the step, another place in the run, and numbers to draw.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int = 0,
        tensorboard: bool = True,
        columns: Sequence[str] = COLUMNS,
    ) -> None:
        self.path = folder / "log.csv"
        self.columns = tuple(columns)
        rows = [row for row in read_log(self.path) if int(row["step"]) <= step]
        self._write("w", rows)
        self._board: Any = None
        if tensorboard and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one row; keys of the columns, some may be missing."""
        self._write("a", [row])
        if self._board is not None:
            for key in self.columns[2:]:
                if isinstance(row.get(key), int | float):
                    self._board.add_scalar(key, row[key], row["step"])
            self._board.flush()
        shown = " ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))
        log.info("step %d: %s", row["step"], shown)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _write(self, mode: str, rows: list[Any]) -> None:
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            if mode == "w":
                writer.writeheader()
            for row in rows:
                writer.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})


def read_log(path: Path) -> list[dict[str, str]]:
    """Rows of a log; empty if there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Bar:
    """A progress bar with rate and remaining time, where tqdm is installed and it is wanted."""

    def __init__(self, total: int, *, done: int, show: bool) -> None:
        self._bar: Any = None
        if show and find_spec("tqdm") is not None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=done, desc="training", unit="step", smoothing=0.05)

    def advance(self, shown: Mapping[str, float]) -> None:
        """One step more."""
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)
            self._bar.update(1)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
