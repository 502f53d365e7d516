"""What a GPU does with the published network: matrix rate, forward rate, how busy it is from end to end.

Needs NumPy, SciPy and torch, and this package (``pip install --no-deps .``): no scverse,
no zarr. Everything is compared with what the same device reaches in the same call: the
forward pass with the best matrix product, the engine's wall time with the time that
the network was running on the device. Without a GPU it runs at toy size on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from _gpu_pipeline import agreement, pipeline
from _plain import machine, random_unet, table
from nimbus_sd.engine.device import PRECISIONS, deploy, memory_budget, resolve_device
from nimbus_sd.models import LoadedModel

RATE_TARGET, BUSY_TARGET, AGREEMENT_TARGET = 0.50, 0.90, 1e-5


def main() -> None:
    """Measure and print."""
    args = arguments()
    device = resolve_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU at toy size"
    print(machine())
    print(f"device: {name}; PyTorch's CUDA {torch.version.cuda}")
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "width": args.width}
    try:
        measure(device, args, found)
    finally:  # what was measured before something failed
        print(json.dumps(found, default=str).replace("NaN", "null"))


def measure(device: torch.device, args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print every table and keep its rows in `found`."""

    def report(key: str, title: str, rows: list[dict]) -> None:
        found[key] = rows
        table(title, rows)

    model = random_unet(args.width)
    rows = matrix_rates(device, args.matrix, args.repeats)
    ceiling = max(row["TFLOP/s"] for row in rows)
    report("matrix", "bf16 matrix product of random squares; the best is the ceiling below", rows)
    ways = [("eager", "channels last"), ("eager", "contiguous")] if "eager" in args.modes else []
    ways += [(mode, "channels last") for mode in args.modes if mode != "eager"]
    report(
        "forward",
        f"forward pass of width {args.width}, {args.precision}, halo included "
        f"(target: of the matrix rate ≥ {RATE_TARGET:.2f})",
        [forward(model, device, tile, *way, args, ceiling) for tile in args.tiles for way in ways],
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = pipeline(model, device, Path(folder), args)
    report(
        "pipeline",
        f"Predictor.run over {args.markers} markers of {args.side} x {args.side} px, {args.precision} "
        f"(target from memory: network busy ≥ {BUSY_TARGET:.2f})",
        rows,
    )
    report(
        "agreement",
        f"cell scores of one field against the CPU in float32 (target: float32 ≤ {AGREEMENT_TARGET})",
        agreement(model, device),
    )


def arguments() -> argparse.Namespace:
    """Command line; sizes that are not given depend on whether there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--width", type=int, default=64 if gpu else 4, help="64 published, 16 bundled")
    parser.add_argument("--precision", default="bfloat16", choices=list(PRECISIONS))
    parser.add_argument("--matrix", type=int, nargs="+", default=[4096, 8192, 16_384] if gpu else [512])
    parser.add_argument("--tiles", type=int, nargs="+", default=[512, 1024, 2048] if gpu else [64, 128])
    parser.add_argument("--modes", nargs="+", default=["eager", "graph", "compile"] if gpu else ["eager"])
    parser.add_argument("--markers", type=int, default=16 if gpu else 2, help="channels of the image")
    parser.add_argument("--side", type=int, default=8192 if gpu else 256, help="its side in px at 1 µm")
    parser.add_argument("--pipeline-tiles", type=int, nargs="+", help="default: what predict chooses")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 8] if gpu else [1], help="readers")
    parser.add_argument("--compiled", action="store_true", help="run the pipeline with torch.compile, too")
    parser.add_argument("--batch", type=int, help="inputs per pass (default: what memory allows)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the file for the memory-mapped run goes")
    return parser.parse_args()


def matrix_rates(device: torch.device, sides: list[int], repeats: int) -> list[dict]:
    """TFLOP/s of square bf16 products; sizes that don't fit are left out."""
    rows = []
    for side in sides:
        if device.type == "cuda" and 3 * 2 * side**2 > torch.cuda.mem_get_info(device)[0]:
            continue
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        took = fastest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, max(repeats, 10))
        rows.append({"side": side, "ms": took * 1e3, "TFLOP/s": 2 * side**3 / took / 1e12})
    return rows


def fastest(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest call after two warm-ups, on the device's own clock where it has one."""
    for _ in range(2):
        function()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    torch.cuda.synchronize(device)
    return min(a.elapsed_time(b) for a, b in pairwise(marks)) / 1e3


def forward(
    model: LoadedModel,
    device: torch.device,
    tile: int,
    mode: str,
    layout: str,
    args: argparse.Namespace,
    ceiling: float,
) -> dict:
    """Rate of one way to run the network; a batch that fails is halved, and the row says so."""
    side = tile + 2 * model.card.halo
    # as Predictor does it, and never more inputs than the image has markers
    fits = memory_budget(model.net, device, args.precision).pixels // side**2
    batch = args.batch or max(min(fits, args.markers), 1)
    net = deploy(model.net, device, args.precision)
    memory_format = torch.channels_last if layout == "channels last" else torch.contiguous_format
    net = net.to(memory_format=memory_format)
    note = ""
    while True:
        x = torch.rand(batch, 2, side, side).to(device, PRECISIONS[args.precision])
        x = x.contiguous(memory_format=memory_format)
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                call = ready(net, x, mode)
                warm = time.perf_counter() - start
                took = fastest(call, device, args.repeats)
            break
        except RuntimeError as error:
            note = f"{batch} failed: {str(error).splitlines()[0][:60]}"
            if batch == 1:
                took = warm = float("nan")
                break
            batch //= 2
            del x
            release(device)
    rate = flops(net, x) / took / 1e12
    release(device)
    return {
        "tile": tile,
        "batch": batch,
        "mode": mode,
        "layout": layout,
        "warm-up s": warm,
        "ms": took * 1e3,
        "computed Mpx/s": batch * side**2 / took / 1e6,
        "TFLOP/s": rate,
        "of the matrix rate": rate / ceiling,
        "kept Mpx/s": batch * tile**2 / took / 1e6,
        "note": note,
    }


def ready(net: nn.Module, x: Tensor, mode: str) -> Callable[[], object]:
    """Warm up one way to run the network and return a call that repeats it."""
    if mode == "eager":
        net(x)
        return lambda: net(x)
    if mode == "compile":
        torch.compiler.reset()
        compiled = torch.compile(net)
        compiled(x)
        return lambda: compiled(x)
    if mode != "graph" or x.device.type != "cuda":
        msg = f"--modes {mode}: valid are eager, compile and, on CUDA, graph"
        raise SystemExit(msg)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # libraries set themselves up before the capture
        net(x)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(x)
    return graph.replay


def flops(net: nn.Module, x: Tensor) -> int:
    """Floating-point operations of one pass, two per multiplication and addition."""
    shadow = copy.deepcopy(net).to("meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, *x.shape[1:], device="meta", dtype=x.dtype))
    return counter.get_total_flops() * len(x)


def release(device: torch.device) -> None:
    """Give cached device memory back, so that the next batch starts from the same."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
