"""Embed the cells of samples: readers cut patches, one pass gives activations and from these the embedding.

The result does not depend on blocks, batch size, threads or devices: each cell's patch goes
through the network by itself.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from functools import cached_property
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import NimbusWarning, OutOfMemoryError, WeightsError
from nimbus_sd.arrays import Partials
from nimbus_sd.arrays.patches import beyond, corners
from nimbus_sd.engine.device import PRECISIONS, deploy, free_memory, resolve_devices, resolve_precision
from nimbus_sd.engine.embedding.attribution import gradient_x_input, occlusion
from nimbus_sd.engine.embedding.inputs import normalise
from nimbus_sd.engine.embedding.job import EmbedConfig, EmbedJob
from nimbus_sd.engine.embedding.margins import MarginCache
from nimbus_sd.engine.embedding.patches import BlockPixels, open_block
from nimbus_sd.engine.memory import reuse_memory
from nimbus_sd.engine.output import is_out_of_memory
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.work import Block, Scored
from nimbus_sd.models.channelwise import ChannelwiseNet, magnitude
from nimbus_sd.models.embedding import EmbeddingModel

# more per pass is no faster: on a CPU it leaves the cache, a GPU is busy with so many patches
_CPU_BYTES, _LEAST = 24 << 20, 8
_COMPARED = 64  # patches whose embeddings are computed in float32 too, where the network runs in less
_MOST = {"cpu": 256, "cuda": 4096, "mps": 1024}


class Embedder:
    """A deployed network that turns blocks into embeddings, activations or attributions.

    Parameters
    ----------
    model
        From :func:`nimbus_sd.models.load_embedding`.
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
        model: EmbeddingModel,
        config: EmbedConfig | None = None,
        device: torch.device | None = None,
        *,
        margins: MarginCache | None = None,
    ) -> None:
        self.card, self._reference = model.card, model.net
        self.config = config or EmbedConfig()
        self.device = device or resolve_devices(self.config.device)[0]
        self.precision = resolve_precision(self.config.precision, self.device)
        self._limit = self.config.batch_size
        self._margins = margins
        self._compared = False
        self._lock = Lock()  # one pass at a time: two would need the memory of two

    @cached_property
    def net(self) -> ChannelwiseNet:
        """The deployed network, made when it is first used."""
        net = deploy(self._reference, self.device, self.precision)
        assert isinstance(net, ChannelwiseNet)  # noqa: S101 - for the type checker: it is a copy of one
        return net.requires_grad_(requires_grad=False)

    def score(self, job: EmbedJob, blocks: Iterable[Block]) -> Iterator[Scored]:
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
            return block, open_block(sample, channels[block.sample], at, job.crop, margins=self._margins)

        for block, pixels in read_ahead(read, blocks, n_threads=self.config.n_threads):
            with reuse_memory(), self._lock:
                found = self._compute(job, pixels)
                difference = self._difference(job, pixels)
            yield Scored(block, self._partials(job, block, found), difference)
            del pixels, found  # before the next block is waited for

    def _partials(self, job: EmbedJob, block: Block, found: dict[str, np.ndarray]) -> Partials:
        sample, rows = job.samples[block.sample], job.plans[block.sample][block.tile].rows
        wrong = [name for name, values in found.items() if not np.isfinite(values).all()]
        if wrong:
            msg = (
                f"model {self.card.name!r} gave NaN or infinite values ({wrong[0]}); its weights are "
                "damaged: load them again, or train anew"
            )
            raise WeightsError(msg)
        border = beyond(corners(sample.centers[rows], job.crop), job.crop, sample.image.shape)
        found["border"] = border[:, None].astype(np.float32)
        order = np.argsort(sample.ids[rows], kind="stable")
        sums = {name: values[order] for name, values in found.items()}
        return Partials(sample.ids[rows][order], np.ones(len(rows), np.int64), sums)

    def _compute(self, job: EmbedJob, pixels: BlockPixels) -> dict[str, np.ndarray]:
        """Quantities of all cells of a block, float32 ``(n, k)``."""
        out: dict[str, np.ndarray] = {}
        start, n = 0, len(pixels)
        while start < n:
            part = slice(start, min(start + self._per_pass(job), n))
            try:
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

    def _pass(self, job: EmbedJob, raw: np.ndarray) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        # TF32 has ten mantissa bits: "float32" must mean float32 on CUDA too
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            with torch.no_grad():
                x = self._input(job, raw)
                if "embedding" in job.quantities or "activation" in job.quantities:
                    activations = self.net.activations(x)
                    found["embedding"] = self.net.mix(activations)
                    found["activation"] = magnitude(activations)
                if "occlusion" in job.quantities:
                    found["occlusion"] = occlusion(self.net, x)
            if "gradient_x_input" in job.quantities:
                found["gradient_x_input"] = gradient_x_input(self.net, x)
        return {name: found[name] for name in job.quantities}

    def _difference(self, job: EmbedJob, pixels: BlockPixels) -> float | None:
        """Largest difference of embeddings from float32, by their largest value, in a few patches.

        None where the network runs in float32 anyway, and after the first block.
        """
        if self.precision == "float32" or self._compared:
            return None
        self._compared = True
        raw = pixels.cut(slice(0, _COMPARED))
        exact = deploy(self._reference, self.device, "float32")
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            x = self._input(job, raw)
            ours, theirs = self.net(x).float(), exact(x.float())
        return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))

    def _input(self, job: EmbedJob, raw: np.ndarray) -> Tensor:
        """Normalised patches ``(b, c, y, x)`` on the device, in the network's dtype and layout."""
        there = torch.from_numpy(raw).to(self.device)
        x = torch.empty(
            there.shape, dtype=torch.float32, device=self.device, memory_format=torch.channels_last
        )
        return normalise(there, job.scale, job.transform, out=x).to(PRECISIONS[self.precision])

    def _per_pass(self, job: EmbedJob) -> int:
        """Patches that go through the network at once, at least one."""
        if self._limit is None:
            n_bytes = pass_bytes(self.net, job.crop) * (2 if "gradient_x_input" in job.quantities else 1)
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


def pass_bytes(net: ChannelwiseNet, crop: int) -> int:
    """Bytes of all outputs of all layers for one patch: as much as a pass can need.

    Examples
    --------
    >>> from nimbus_sd.models.cim import CIM, CIMConfig
    >>> pass_bytes(CIM(CIMConfig(markers=("a", "b"))), 16) > 16 * 16 * 2 * 4
    True
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * output.element_size()

    shadow = copy.deepcopy(net).to("meta")  # computes nothing
    for module in shadow.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    dtype = next(shadow.parameters()).dtype
    x = torch.empty(1, len(net.config.markers), crop, crop, device="meta", dtype=dtype)
    with torch.no_grad():
        shadow.eval()(x)
    # the passes see an empty patch as well; the input is there twice, raw and normalised
    return total // 2 + 3 * x.numel() * x.element_size()
