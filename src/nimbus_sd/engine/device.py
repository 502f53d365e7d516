"""Where and how precisely the network runs: device, dtype, folding, memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.models.unet import UNet

_WIDEST = 128  # planes at full resolution of networks other than a UNet, a safe upper end
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(device: str = "auto") -> torch.device:
    """Pick cuda, then mps, then cpu for ``"auto"``; check that a named device is there.

    Raises
    ------
    InputError
        If the device is unknown or absent.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        msg = f"device={device!r} is not a device name; valid: 'auto', {', '.join(available_devices())}"
        raise InputError(msg) from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (found.index or 0) >= there.get(found.type, 0):
        msg = f"device={device!r} is not on this machine; valid: 'auto', {', '.join(available_devices())}"
        raise InputError(msg)
    return found


def resolve_devices(device: str | Sequence[str] = "auto") -> list[torch.device]:
    """All devices that share the work: every GPU for ``"auto"`` or ``"cuda"``, else the ones named.

    Raises
    ------
    InputError
        If a device is unknown or absent, or none is named.
    """
    if not isinstance(device, str):
        if not device:
            msg = f"device={device!r} names no device; valid: 'auto', {', '.join(available_devices())}"
            raise InputError(msg)
        return [resolve_device(d) for d in device]
    first = resolve_device(device)
    if device in ("auto", "cuda") and first.type == "cuda":
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [first]


def available_devices() -> list[str]:
    """Names that ``device=`` accepts here."""
    out = ["'cpu'"] + [f"'cuda:{i}'" for i in range(torch.cuda.device_count())]
    return [*out, "'mps'"] if torch.backends.mps.is_available() else out


def resolve_precision(precision: str, device: torch.device) -> str:
    """``"auto"`` is bfloat16 where the hardware multiplies it natively, else float32."""
    if precision == "auto":
        return "bfloat16" if _native_bfloat16(device) else "float32"
    if precision not in PRECISIONS:
        msg = f"precision={precision!r}; valid: 'auto', {', '.join(map(repr, PRECISIONS))}"
        raise InputError(msg)
    return precision


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16"))
    return False


def deploy(net: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """An inference copy: batch norms folded, weights cast, channels last, on the device."""
    # a cast changes a module in place: the caller's stays as it is
    net = net.folded() if isinstance(net, UNet) else copy.deepcopy(net)
    net = net.to(device=device, dtype=PRECISIONS[precision])
    return net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that activations may take, and bytes per model px of one batch item."""

    available: int
    per_pixel: int

    @property
    def pixels(self) -> int:
        """Model px that fit."""
        return max(self.available // self.per_pixel, 1)


def memory_budget(
    net: nn.Module, device: torch.device, precision: str, *, limit: int | None = None
) -> MemoryBudget:
    """`limit` bytes, else a third of the free memory, and the peak of live activations at the first level."""
    width = net.config.width if isinstance(net, UNet) else 64
    # skip + concatenation (2x) + block output + two temporaries, each `width` values per px
    per_pixel = 8 * width * (2 if precision == "bfloat16" else 4)
    if limit is not None:
        return MemoryBudget(available=limit, per_pixel=per_pixel)
    return MemoryBudget(available=free_memory(device) // 3, per_pixel=per_pixel)


def index_limit(net: nn.Module) -> int:
    """Model px per pass that keep every activation below 2**31 elements, where 32-bit indices of GPUs end."""
    # the widest is a skip beside what it is joined with; encoders begin at half the resolution
    planes = 2 * net.config.width if isinstance(net, UNet) else _WIDEST
    return (2**31 - 1) // planes


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_host_memory()


def _free_host_memory() -> int:
    """Bytes that can be had without swapping: page cache counts, a control group's limit too."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        if "MemAvailable" in lines:
            found.append(int(lines["MemAvailable"].split()[0]) << 10)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and limit.read_text(encoding="ascii").strip().isdigit():
        found.append(
            max(int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")), 1 << 28)
        )
    return min(found, default=4 << 30)
