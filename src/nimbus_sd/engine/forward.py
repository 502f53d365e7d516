"""One network on one device: batches that fit, test-time views, precision checked against float32."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from threading import Lock

import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import NimbusWarning
from nimbus_sd.arrays import VIEWS, Tile, apply_view, invert_view
from nimbus_sd.engine.device import deploy, index_limit, memory_budget
from nimbus_sd.engine.output import is_out_of_memory, no_memory
from nimbus_sd.models.loading import LoadedModel

log = logging.getLogger("nimbus_sd")

_CPU_BATCH_PIXELS = 1 << 20  # more per pass is no faster on a CPU and takes memory
_CHECK_SIDE = 128


class Network:
    """A deployed network: folded, cast, channels last.

    Parameters
    ----------
    model
        From :func:`nimbus_sd.models.load`.
    device, precision
        Resolved.
    batch_size
        Inputs per forward pass; None finds it from memory.
    memory
        Bytes that activations may take; None takes a third of what is free.
    compiled
        Let ``torch.compile`` rewrite the network; its first pass takes a minute or more.
    """

    def __init__(
        self,
        model: LoadedModel,
        device: torch.device,
        precision: str,
        *,
        batch_size: int | None = None,
        memory: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.device, self.precision = device, precision
        self.budget = memory_budget(model.net, device, precision, limit=memory)
        self._indexable = index_limit(model.net)
        self._reference = model.net
        self._compared = False
        self._batch_limit = batch_size
        self._compiled = self._cold = compiled
        self._lock = Lock()  # one pass at a time: two would need the memory of two

    @cached_property
    def net(self) -> nn.Module:
        """The deployed network, made when it is first used: who only plans needs none."""
        return deploy(self._reference, self.device, self.precision)

    @cached_property
    def _call(self) -> Callable[[Tensor], Tensor]:
        return torch.compile(self.net) if self._compiled else self.net

    def probabilities(self, batch: Tensor, views: Sequence[str], tile: Tile) -> Tensor:
        """Probabilities of a tile's core, float32 ``(views, g, y, x)`` on the device.

        Parameters
        ----------
        batch
            ``(g, 2, y, x)`` inputs, in any memory.
        views
            Test-time views; those of one shape share passes.
        tile
            Says what to keep.
        """
        size = tuple(s.stop - s.start for s in tile.kept)
        out = torch.empty((len(views), len(batch), *size), dtype=torch.float32, device=self.device)
        turned = [VIEWS[v][0] for v in views]  # a transpose exchanges height and width
        by_shape = sorted(range(len(views)), key=turned.__getitem__)
        with self._lock:
            for _, same in groupby(by_shape, key=turned.__getitem__):
                self._run_views(batch, views, list(same), tile, out)
        return out

    def _run_views(
        self, batch: Tensor, views: Sequence[str], same: list[int], tile: Tile, out: Tensor
    ) -> None:
        todo = [(v, g) for v in same for g in range(len(batch))]
        start = 0
        while start < len(todo):
            part = todo[start : start + self.per_pass((batch.shape[-2], batch.shape[-1]))]
            try:
                self._run_batch(batch, views, part, tile, out)
            except RuntimeError as error:
                self._shrink(error, len(part))
                continue
            start += len(part)

    def _run_batch(
        self, batch: Tensor, views: Sequence[str], part: list[tuple[int, int]], tile: Tile, out: Tensor
    ) -> None:
        # TF32 has ten mantissa bits: "float32" must mean float32 on CUDA too
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            runs = list(_runs(part))
            turned = [
                apply_view(batch[first:stop].to(self.device, non_blocking=True), views[v])
                for v, first, stop in runs
            ]
            x = turned[0] if len(turned) == 1 else torch.cat(turned)
            logits = self._forward(x.contiguous(memory_format=torch.channels_last))
            at = 0
            for v, first, stop in runs:
                one = invert_view(logits[at : at + stop - first], views[v])[:, 0, *tile.kept]
                torch.sigmoid(one.float(), out=out[v, first:stop])
                at += stop - first

    def _forward(self, x: Tensor) -> Tensor:
        if not self._cold:
            return self._call(x)
        start = time.perf_counter()
        out = self._call(x)
        log.warning("torch.compile: the first pass took %.0f s", time.perf_counter() - start)
        self._cold = False
        return out

    def difference(self, batch: Tensor) -> float | None:
        """Largest difference of pixel probabilities from float32, on a crop of the first input.

        None where the network runs in float32 anyway, and after the first call.
        """
        if self.precision == "float32" or self._compared:
            return None
        self._compared = True
        y, x = (slice((n - min(n, _CHECK_SIDE)) // 2, None) for n in batch.shape[-2:])
        crop = batch[:1, :, y, x][..., :_CHECK_SIDE, :_CHECK_SIDE].to(self.device)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            ours = self.net(crop.contiguous(memory_format=torch.channels_last)).float().sigmoid()
            exact = deploy(self._reference, self.device, "float32")(crop.float()).sigmoid()
        return float((ours - exact).abs().max())

    @property
    def pixels(self) -> int:
        """Model px that can go through the network at once: what fits, and what a GPU can index."""
        fits = self.budget.pixels
        return fits if self.device.type == "cpu" else min(fits, self._indexable)

    def per_pass(self, shape: tuple[int, int]) -> int:
        """Inputs of so many (y, x) px that go through the network at once, at least one."""
        pixels, on_cpu = math.prod(shape), self.device.type == "cpu"
        n = self._batch_limit
        if n is None:
            n = min(self.pixels, _CPU_BATCH_PIXELS if on_cpu else self.pixels) // pixels
        elif not on_cpu:
            n = min(n, self._indexable // pixels)
        return max(n, 1)

    def _shrink(self, error: RuntimeError, step: int) -> None:
        if not is_out_of_memory(error):
            raise error
        if step == 1:
            raise no_memory(self.device) from error
        self._batch_limit = step // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory on {self.device}: batch size halved to {self._batch_limit}",
            NimbusWarning,
            stacklevel=2,
        )


def _runs(part: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """View, first and last + 1 input of every stretch of one view."""
    for view, pairs in groupby(part, key=lambda p: p[0]):
        members = [g for _, g in pairs]
        yield view, members[0], members[-1] + 1
