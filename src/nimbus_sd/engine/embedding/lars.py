"""LARS: momentum SGD whose rate follows, layer by layer, how large the weights are to their gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling.

    With weights w and gradient g of one tensor, decay d and trust coefficient h::

        local = h * |w| / (|g| + d * |w|)        (1 where |w| or |g| is 0)
        v = momentum * v + lr * local * (g + d * w)
        w = w - v

    Groups with ``adapt=False`` take ``local = 1`` and no decay: biases and the
    parameters of norms, see :func:`decay_groups`.

    Parameters
    ----------
    params
        Tensors, or groups of them.
    lr
        Rate before adaptation.
    momentum, weight_decay, trust
        momentum, d and h above.

    Raises
    ------
    InputError
        If a number is out of range.

    References
    ----------
    You, Gitman and Ginsburg (2017), *Large batch training of convolutional networks*.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
    ) -> None:
        if not (lr >= 0 and 0 <= momentum < 1 and weight_decay >= 0 and trust > 0):
            msg = (
                f"LARS: lr={lr}, momentum={momentum}, weight_decay={weight_decay}, trust={trust}; valid: "
                "lr ≥ 0, 0 ≤ momentum < 1, weight_decay ≥ 0, trust > 0"
            )
            raise InputError(msg)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure` is evaluated before it, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)
        return loss

    def _move(self, weight: Tensor, change: Tensor, group: dict[str, Any]) -> None:
        rate: float | Tensor = group["lr"]
        if group["adapt"]:
            decay = group["weight_decay"]
            w, g = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(change)
            local = group["trust"] * w / (g + decay * w)
            rate = rate * torch.where((w > 0) & (g > 0), local, torch.ones_like(local))
            change = change + decay * weight
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity = state["velocity"].mul_(group["momentum"]).add_(rate * change)
        weight.sub_(velocity)


def decay_groups(net: nn.Module) -> list[dict[str, Any]]:
    """Weights of layers in one group; biases and norms in another, without decay and adaptation."""
    trained = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]
