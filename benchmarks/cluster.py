"""One worker against two on one machine, from names to the finished table, one thread each.

Workers are processes of a dask LocalCluster. Starting them and the first run on each,
which loads the model, stay outside the clock and are reported apart; after that the
ways to run take turns. What two processes cost each other on this machine without any
of our code (memory bandwidth, clock rate) is measured with the bare forward pass on the
same workers: that is the ceiling of the efficiency.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from distributed import Client, LocalCluster
from spatialdata import SpatialData

import nimbus_sd as nb
from _common import (
    machine,
    normalization,
    random_unet,
    seconds,
    side_by_side,
    simulated_marker,
    store_spatialdata,
    table,
)
from nimbus_sd.engine.device import PRECISIONS, deploy, resolve_precision
from nimbus_sd.engine.memory import reuse_memory
from nimbus_sd.models import LoadedModel, load
from nimbus_sd.models.loading import save

TARGET = 0.90
SCALE = 1000.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=1536, help="image side in px at 1 µm")
    parser.add_argument("--markers", type=int, default=1)
    parser.add_argument("--tile", type=int, default=256, help="tile side in px; 16 blocks or more")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64], help="16 bundled, 64 published")
    parser.add_argument("--precision", default="auto", choices=["auto", *PRECISIONS])
    parser.add_argument("--readers", type=int, default=0, help="reader threads; 0 keeps to one thread")
    parser.add_argument("--workers", type=int, default=2, help="compared with one")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.workers < 2:
        parser.error(f"--workers {args.workers}: give two or more, which are compared with one")
    args.precision = resolve_precision(args.precision, torch.device("cpu"))
    torch.set_num_threads(1)
    print(machine())
    image, labels = simulated_marker(args.side)
    image = np.concatenate([np.roll(image, 37 * i, axis=(1, 2)) for i in range(args.markers)])
    blocks = (-(-args.side // args.tile)) ** 2
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sdata = store_spatialdata(Path(folder) / "field.zarr", image, labels, chunk=args.tile)
        clients, started = {}, {}
        for n in (1, args.workers):
            start = time.perf_counter()
            clients[n] = stack.enter_context(cluster(n, Path(folder)))
            started[n] = time.perf_counter() - start
        # in a file, as weights are: workers load them from there
        models = [saved(random_unet(width), Path(folder) / f"width-{width}") for width in args.widths]
        rows = [measure(sdata, model, clients, args) for model in models]
    table(
        f"{args.markers} marker(s) of {args.side} x {args.side} px, {blocks} blocks, {args.precision}, "
        f"one thread per process (target: efficiency ≥ {TARGET:.2f})",
        rows,
    )
    for n, took in started.items():
        print(f"  starting {n} worker(s), not in the times above: {took:.1f} s")


def saved(model: LoadedModel, folder: Path) -> LoadedModel:
    """The same model from a folder of weights."""
    save(model.net, folder, model.card, half=False)
    return load(folder)


@contextmanager
def cluster(n: int, folder: Path) -> Iterator[Client]:
    """A local cluster of `n` processes with one thread each; its client is not the default one."""
    local = LocalCluster(
        n_workers=n,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        local_directory=folder / f"workers-{n}",
    )
    with local, Client(local, set_as_default=False) as client:
        client.wait_for_workers(n)
        yield client


def measure(
    sdata: SpatialData, model: LoadedModel, clients: dict[int, Client], args: argparse.Namespace
) -> dict:
    """Time the serial run and both clusters in turns, after a first run of each."""
    one, many = clients

    def predict(client: Client | None) -> np.ndarray:
        nb.tl.predict(
            sdata,
            model=model,
            mpp=1.0,
            normalization=normalization([f"marker{i}" for i in range(args.markers)], SCALE),
            tile=args.tile,
            precision=args.precision,
            device="cpu",
            n_threads=args.readers,
            # False: no cluster, even where a client is active
            client=client or False,
            overwrite=True,
            progress=False,
        )
        return sdata["nimbus"].X.copy()

    first = {n: seconds(lambda c=client: predict(c)) for n, client in clients.items()}
    serial = predict(None)
    gap = max(float(np.abs(predict(c) - serial).max()) for c in clients.values())
    best = side_by_side(
        {
            "serial": lambda: predict(None),
            "one": lambda: predict(clients[one]),
            "many": lambda: predict(clients[many]),
        },
        repeats=args.repeats,
    )
    alone = bare_forward(clients[one], model, args)
    together = bare_forward(clients[many], model, args)
    return {
        "network": f"width {model.net.config.width}",
        "serial s": best["serial"],
        "1 worker s": best["one"],
        f"{many} workers s": best["many"],
        "efficiency": best["one"] / (many * best["many"]),
        "1 worker / serial": best["one"] / best["serial"],
        "ceiling (bare forward)": alone / together,
        "first run, 1 worker s": first[one],
        f"first run, {many} workers s": first[many],
        "largest score difference": gap,
    }


def bare_forward(client: Client, model: LoadedModel, args: argparse.Namespace) -> float:
    """Seconds per pass of the bare network while all workers of a cluster run it at once."""
    took = client.run(
        _passes, model, args.tile + 2 * model.card.halo, args.precision, repeats=2 * args.repeats
    )
    return float(np.mean(list(took.values())))


def _passes(model: LoadedModel, side: int, precision: str, *, repeats: int) -> float:
    """Run on a worker: mean seconds per pass over one tile, after one to warm up."""
    net = deploy(model.net, torch.device("cpu"), precision)
    x = torch.rand(1, 2, side, side).to(PRECISIONS[precision]).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), reuse_memory():
        net(x)
        start = time.perf_counter()
        for _ in range(repeats):
            net(x)
        return (time.perf_counter() - start) / repeats


if __name__ == "__main__":
    main()
