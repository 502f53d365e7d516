"""Progress bars with rate and ETA for work that takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


@contextmanager
def progress_bar(
    total: int, *, description: str, unit: str, show: bool, scale: bool = False, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the bar by n; it starts at `done`, which the rate leaves out."""
    with tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        unit_scale=scale,
        disable=not show,
        smoothing=0.1,
        leave=True,
    ) as bar:
        yield lambda n: bar.update(n) and None
