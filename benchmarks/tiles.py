"""Seconds per megapixel of output against tile size and batch size: which tile suits this machine.

Each tile computes its halo on every side and throws it away, so larger tiles waste
less; past a point they no longer fit the caches. The last column compares the
throughput of the best choice with each.
"""

from __future__ import annotations

import argparse

import torch

from _common import machine, random_unet, seconds, table
from nimbus_sd.engine.device import PRECISIONS, deploy, memory_budget, resolve_device
from nimbus_sd.engine.memory import reuse_memory


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"], choices=list(PRECISIONS))
    parser.add_argument("--tiles", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--limit", type=float, default=6.0, help="largest input in megapixels, batch included"
    )
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    print(machine())
    device = resolve_device(args.device)
    for width in args.widths:
        model = random_unet(width)
        for precision in args.precisions:
            net = deploy(model.net, device, precision)
            budget = memory_budget(model.net, device, precision)
            rows = []
            for tile in args.tiles:
                side = tile + 2 * model.card.halo
                for batch in args.batches:
                    pixels = batch * side**2
                    if pixels > min(args.limit * 1e6, budget.pixels):
                        continue
                    took = forward(net, batch, side, device, PRECISIONS[precision], args.repeats)
                    rows.append(
                        {
                            "tile": tile,
                            "batch": batch,
                            "s per pass": took,
                            "s per computed Mpx": took / pixels * 1e6,
                            "halo work": side**2 / tile**2,
                            "s per output Mpx": took / (batch * tile**2) * 1e6,
                        }
                    )
            best = min(row["s per output Mpx"] for row in rows)
            for row in rows:
                row["to the best"] = row["s per output Mpx"] / best
            table(f"width {width}, {precision}, {device}, halo {model.card.halo} px", rows)


def forward(
    net: torch.nn.Module, batch: int, side: int, device: torch.device, dtype: torch.dtype, repeats: int
) -> float:
    """Fastest pass over a batch of random tiles."""
    x = torch.rand(batch, 2, side, side).to(device, dtype).contiguous(memory_format=torch.channels_last)

    def once() -> None:
        net(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode(), reuse_memory():
        once()
        return min(seconds(once) for _ in range(repeats))


if __name__ == "__main__":
    main()
