"""One training step, the same for the plain loop and for lightning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.augment import augment
from nimbus_sd.engine.training.batch import Batch
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.loss import cell_means, cell_sizes, pixel_losses, pixel_weights, weighted_mean
from nimbus_sd.engine.training.selection import Total, select
from nimbus_sd.engine.training.state import TrainState

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Outcome:
    """What one pass gave.

    Parameters
    ----------
    loss
        Scalar to minimise.
    tile_losses
        ``(b,)`` detached, to find the tile behind a loss that is not finite.
    quantiles
        The selection's running quantiles after this batch.
    cells
        ``(2, 2)``: negative and positive cells with a label, and how many of them the loss
        was taken over.
    """

    loss: Tensor
    tile_losses: Tensor
    quantiles: Tensor
    cells: Tensor


def network_inputs(batch: Batch, transform: str) -> Tensor:
    """Clip to [0, 1], transform, add the mask: ``(b, 2 + e, y, x)`` float32, channels last."""
    planes = batch.planes.clamp(0, 1)
    if transform == "sqrt":
        planes = planes.sqrt()
    mask = batch.mask[:, None].to(planes.dtype)
    inputs = torch.cat([planes[:, :1], mask, planes[:, 1:]], dim=1)
    return inputs.contiguous(memory_format=torch.channels_last)


def logits_of(net: nn.Module, batch: Batch, *, transform: str, precision: torch.dtype) -> Tensor:
    """Run the network under autocast: ``(b, 1, y, x)``."""
    inputs = network_inputs(batch, transform)
    with torch.autocast(inputs.device.type, precision, enabled=precision != torch.float32):
        out: Tensor = net(inputs) if batch.context is None else net(inputs, batch.context)
    return out


def compute_loss(
    net: nn.Module,
    batch: Batch,
    config: TrainConfig,
    *,
    state: TrainState,
    precision: torch.dtype = torch.float32,
    total: Total = lambda x: x,
) -> Outcome:
    """Loss of a batch that is augmented already; in the robust stage over the cells that are believed.

    Parameters
    ----------
    net
        Network in training mode (of `state`, perhaps wrapped).
    batch, config
        Data; what the loss is.
    state
        For its step, running quantiles and first weights. It is not changed.
    precision
        Of the forward pass.
    total
        Sums over processes.
    """
    logits = logits_of(net, batch, transform=config.transform, precision=precision)
    losses = pixel_losses(logits, batch.labels, batch.target, smoothing=config.smoothing)
    sizes = cell_sizes(batch.labels, len(batch.target))
    quantiles, target = state.quantiles, batch.target
    counts = [_count_classes(target, sizes)]
    if config.is_robust(state.step):
        with torch.no_grad():
            means = cell_means(losses.detach(), batch.labels, sizes)
            scores = cell_means(torch.sigmoid(logits.detach()[:, 0].float()), batch.labels, sizes)
        quantiles, keep = select(
            quantiles,
            means,
            scores,
            target=target,
            group=batch.group,
            present=sizes > 0,
            config=config.selection,
            step=state.step - config.steps,
            total=total,
        )
        target = torch.where(keep, target, torch.nan)
    counts.append(_count_classes(target, sizes))
    weights = pixel_weights(target, sizes, background=config.background, balance=config.cell_balance)
    loss = weighted_mean(losses, batch.labels, weights)
    if config.l2_sp and state.anchor:
        loss = loss + config.l2_sp * distance(net, state.anchor)
    return Outcome(loss, losses.detach().mean(dim=(1, 2)), quantiles, torch.stack(counts, dim=1))


def _count_classes(target: Tensor, sizes: Tensor) -> Tensor:
    """Negative and positive cells that are in the batch."""
    return torch.stack([((target == t) & (sizes > 0)).sum() for t in (0, 1)])


def shown(loss: float, outcome: Outcome) -> dict[str, float]:
    """What is reported of a step."""
    names = ("negative", "kept_negative", "positive", "kept_positive")
    return {"loss": loss, **dict(zip(names, outcome.cells.float().flatten().tolist(), strict=True))}


def distance(net: nn.Module, anchor: Mapping[str, Tensor]) -> Tensor:
    """Half the squared distance of the parameters from `anchor` (Li et al., L2-SP)."""
    parts = [(p - anchor[name]).square().sum() for name, p in net.named_parameters() if p.requires_grad]
    return 0.5 * torch.stack(parts).sum()


def training_mode(net: nn.Module, config: TrainConfig) -> None:
    """Training mode, with batch norms left alone if the configuration says so."""
    net.train()
    if config.freeze_norm:
        for module in net.modules():
            if isinstance(module, _NORMS):
                module.eval()


def clip_gradients(net: nn.Module, config: TrainConfig) -> Tensor:
    """Limit the norm of the gradients and return what it was."""
    return nn.utils.clip_grad_norm_(net.parameters(), config.clip or float("inf"))


def check_finite(loss: Tensor, norm: Tensor, outcome: Outcome, batch: Batch) -> float:
    """Return the loss as a number.

    Raises
    ------
    InputError
        If loss or gradients are not finite, naming the tiles to blame.
    """
    both = torch.stack([loss.detach().float(), norm.detach().float()]).cpu()
    if bool(torch.isfinite(both).all()):
        return float(both[0])
    pixels_bad = ~torch.isfinite(batch.planes.flatten(1)).all(1)
    losses_bad = ~torch.isfinite(outcome.tile_losses)
    bad = pixels_bad if bool(pixels_bad.any()) else losses_bad
    names = [n for n, b in zip(batch.names, bad.tolist(), strict=True) if b] or list(batch.names)
    what = "pixels" if bool(pixels_bad.any()) else "loss" if bool(losses_bad.any()) else "gradients"
    shown = "; ".join(dict.fromkeys(names))
    msg = (
        f"training stopped at step {batch.step}: {what} not finite for {shown}. The last checkpoint is "
        "untouched; look at these images, or lower the learning rate, and start again to go on from it"
    )
    raise InputError(msg)


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, *, step: int, decay: float) -> None:
    """Move the averaged weights and statistics towards the network's; young averages move faster."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, rate)
        else:
            old.copy_(new)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def after_update(state: TrainState, outcome: Outcome, config: TrainConfig) -> None:
    """Take over what a step changed besides the weights, and count it."""
    update_average(state.average, state.net, step=state.step, decay=config.ema)
    state.quantiles = outcome.quantiles
    state.step += 1


def prepare(batch: Batch, config: TrainConfig, device: torch.device) -> Batch:
    """Move a batch to its device and augment it there."""
    return augment(batch.to(device), config.augment, seed=config.seed)


def train_step(
    state: TrainState, batch: Batch, config: TrainConfig, *, precision: torch.dtype = torch.float32
) -> dict[str, float]:
    """Take one optimiser step with the batch of ``state.step``.

    Returns
    -------
    ``loss``; numbers of ``negative`` and ``positive`` cells, and of those it was taken over.
    """
    training_mode(state.net, config)
    set_rate(state.optimiser, config.rate(state.step))
    batch = prepare(batch, config, state.quantiles.device)
    outcome = compute_loss(state.net, batch, config, state=state, precision=precision)
    state.optimiser.zero_grad(set_to_none=True)
    outcome.loss.backward()
    norm = clip_gradients(state.net, config)
    loss = check_finite(outcome.loss, norm, outcome, batch)
    state.optimiser.step()
    after_update(state, outcome, config)
    return shown(loss, outcome)
