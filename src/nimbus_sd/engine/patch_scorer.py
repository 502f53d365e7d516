"""Run the patches of blocks through a network: readers cut them, one pass after the other answers.

The result does not depend on blocks, batch size, threads or devices: each cell's patch goes
through the network by itself.
"""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from threading import Lock
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import NimbusWarning, OutOfMemoryError, WeightsError
from nimbus_sd.arrays import Partials
from nimbus_sd.arrays.patches import beyond, corners
from nimbus_sd.engine.device import deploy, free_memory, resolve_devices, resolve_precision
from nimbus_sd.engine.embedding.margins import MarginCache
from nimbus_sd.engine.embedding.patches import BlockPixels, open_block
from nimbus_sd.engine.memory import reuse_memory
from nimbus_sd.engine.output import is_out_of_memory
from nimbus_sd.engine.patch_job import PatchConfig, PatchJob
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.work import Block, Scored

N = TypeVar("N", bound=nn.Module)
J = TypeVar("J", bound=PatchJob)

# more per pass is no faster: on a CPU it leaves the cache, a GPU is busy with so many patches
_CPU_BYTES, _LEAST = 24 << 20, 8
_COMPARED = 64  # patches that are computed in float32 too, where the network runs in less
_MOST = {"cpu": 256, "cuda": 4096, "mps": 1024}


class PatchScorer(ABC, Generic[N, J]):
    """A deployed network that turns blocks into values of their cells.

    Parameters
    ----------
    net
        In eval mode, float32, on the CPU.
    name
        Of the model, for messages.
    config
        How to run.
    device
        One of the devices that the config names; None takes the first.
    margins
        Of the blocks read before, shared by all devices that take blocks in turn; None reads
        what a block needs of its neighbours again.
    """

    def __init__(
        self,
        net: N,
        name: str,
        config: PatchConfig | None = None,
        device: torch.device | None = None,
        *,
        margins: MarginCache | None = None,
    ) -> None:
        self._reference, self._name = net, name
        self.config = config or PatchConfig()
        self.device = device or resolve_devices(self.config.device)[0]
        self.precision = resolve_precision(self.config.precision, self.device)
        self._limit = self.config.batch_size
        self._margins = margins
        self._compared = False
        self._lock = Lock()  # one pass at a time: two would need the memory of two

    @abstractmethod
    def _pass(self, job: J, raw: np.ndarray) -> dict[str, Tensor]:
        """What the job asks for, of raw patches ``(b, c, y, x)``: name to ``(b, k)``."""

    @abstractmethod
    def _input(self, job: J, raw: np.ndarray) -> Tensor:
        """What the network sees, on the device, in its dtype."""

    @abstractmethod
    def _answer(self, net: N, x: Tensor) -> Tensor:
        """The values, float32, whose distance from float32's is told where the network runs in less."""

    @abstractmethod
    def _pass_bytes(self, job: J) -> int:
        """Bytes that a pass needs for each patch."""

    @cached_property
    def net(self) -> N:
        """The deployed network, made when it is first used."""
        return cast("N", deploy(self._reference, self.device, self.precision).requires_grad_(False))

    def score(self, job: J, blocks: Iterable[Block]) -> Iterator[Scored]:
        """Compute what the job asks for, block by block in their order; readers run ahead.

        Parameters
        ----------
        job
            What to compute.
        blocks
            Consumed lazily.

        Yields
        ------
        Partials with sums float32 ``(n, k)`` of each of the job's quantities, and ``border``
        ``(n, 1)``: 1 where the patch reaches beyond the image. Each cell counts once.
        """
        channels = {s: job.channels(s) for s in range(len(job.samples))}

        def read(block: Block) -> tuple[Block, BlockPixels]:
            sample, at = job.samples[block.sample], job.plans[block.sample][block.tile]
            size = job.size(block.sample)
            return block, open_block(sample, channels[block.sample], at, size, margins=self._margins)

        for block, pixels in read_ahead(read, blocks, n_threads=self.config.n_threads):
            with reuse_memory(), self._lock:
                found = self._compute(job, pixels)
                difference = self._difference(job, pixels)
            yield Scored(block, self._partials(job, block, found), difference)
            del pixels, found  # before the next block is waited for

    def _partials(self, job: J, block: Block, found: dict[str, np.ndarray]) -> Partials:
        sample, rows = job.samples[block.sample], job.plans[block.sample][block.tile].rows
        wrong = [name for name, values in found.items() if not np.isfinite(values).all()]
        if wrong:
            msg = (
                f"model {self._name!r} gave NaN or infinite values ({wrong[0]}); its weights are "
                "damaged: load them again, or train anew"
            )
            raise WeightsError(msg)
        size = job.size(block.sample)
        border = beyond(corners(sample.centers[rows], size), size, sample.image.shape)
        found["border"] = border[:, None].astype(np.float32)
        order = np.argsort(sample.ids[rows], kind="stable")
        sums = {name: values[order] for name, values in found.items()}
        return Partials(sample.ids[rows][order], np.ones(len(rows), np.int64), sums)

    def _compute(self, job: J, pixels: BlockPixels) -> dict[str, np.ndarray]:
        """Quantities of all cells of a block, float32 ``(n, k)``."""
        out: dict[str, np.ndarray] = {}
        start, n = 0, len(pixels)
        while start < n:
            part = slice(start, min(start + self._per_pass(job), n))
            try:
                # TF32 has ten mantissa bits: "float32" must mean float32 on CUDA too
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                    found = self._pass(job, pixels.cut(part))
            except RuntimeError as error:
                self._shrink(error, part.stop - part.start)
                continue
            for name, values in found.items():
                if name not in out:
                    out[name] = np.empty((n, values.shape[1]), np.float32)
                out[name][part] = values.float().cpu().numpy()
            start = part.stop
        return out

    def _difference(self, job: J, pixels: BlockPixels) -> float | None:
        """Largest difference of answers from float32, by their largest value, in a few patches.

        None where the network runs in float32 anyway, and after the first block.
        """
        if self.precision == "float32" or self._compared:
            return None
        self._compared = True
        raw = pixels.cut(slice(0, _COMPARED))
        exact = cast("N", deploy(self._reference, self.device, "float32"))
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            x = self._input(job, raw)
            ours, theirs = self._answer(self.net, x), self._answer(exact, x.float())
        return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))

    def _per_pass(self, job: J) -> int:
        """Patches that go through the network at once, at least one."""
        if self._limit is None:
            n_bytes = self._pass_bytes(job)
            available = self.config.memory or free_memory(self.device) // 3
            self._limit = max(min(available // n_bytes, _MOST[self.device.type]), 1)
            if self.device.type == "cpu":
                self._limit = min(self._limit, max(_CPU_BYTES // n_bytes, _LEAST))
        return self._limit

    def _shrink(self, error: RuntimeError, step: int) -> None:
        if not is_out_of_memory(error):
            raise error
        if step == 1:
            msg = (
                f"the device {self.device} ran out of memory with one patch per batch; take another "
                "device=, or end what else uses its memory"
            )
            raise OutOfMemoryError(msg) from error
        self._limit = step // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory on {self.device}: batch size halved to {self._limit}", NimbusWarning, stacklevel=2
        )


def output_bytes(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes of all outputs of all layers for an input of this shape: as much as a pass can need.

    Examples
    --------
    >>> output_bytes(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), (1, 1, 8, 8)) == 2 * 2 * 64 * 4
    True
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    shadow = copy.deepcopy(net).to("meta")  # computes nothing
    for module in shadow.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    dtype = next(shadow.parameters()).dtype
    with torch.no_grad():
        shadow.eval()(torch.empty(shape, device="meta", dtype=dtype))
    return total
