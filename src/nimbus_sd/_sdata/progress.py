"""Progress bars with rate and ETA for work that takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


@contextmanager
def progress_bar(
    total: int, *, description: str, unit: str, show: bool, scale: bool = False
) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the bar by n."""
    with tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=scale,
        disable=not show,
        smoothing=0.1,
        leave=True,
    ) as bar:
        yield lambda n: bar.update(n) and None
