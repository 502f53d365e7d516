"""Probes of ``nimbus-sd doctor`` that compute something: imports, devices, stores, the bundled model."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from nimbus_sd.cli._checkup import Checkup

IMPORTED = ("numpy", "torch", "zarr", "dask.array", "anndata", "spatialdata", "scanpy", "skimage", "tifffile")
_SIDE = 256  # px of the image that the model is timed on
_FAR = {"float32": 1e-3, "bfloat16": 0.1}  # of probabilities: more is an error, not rounding
_LOW_SPACE = 2e9  # bytes
_FEW_FILES = 1024  # open files


def look_at_program(checkup: Checkup) -> None:
    """Version, Python, platform."""
    from nimbus_sd._core.version import __version__

    section = "this program"
    checkup.say(section, "nimbus-sd", f"{__version__}, {Path(__file__).parents[1]}", __version__)
    checkup.say(
        section, "python", f"{platform.python_version()}, {sys.executable}", platform.python_version()
    )
    checkup.say(section, "platform", platform.platform())


def look_at_import(checkup: Checkup, module: str) -> None:
    """Import a module and say how long it took."""
    start = time.perf_counter()
    import_module(module)
    seconds = time.perf_counter() - start
    checkup.say("imports", module, f"{seconds:.1f} s", round(seconds, 3))


def look_at_machine(checkup: Checkup) -> None:
    """Cores and threads, memory, GPUs."""
    import torch

    from nimbus_sd.engine.device import free_memory

    section = "devices"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    free = free_memory(torch.device("cpu"))
    told = f"{cores} cores, {threads} threads of torch, {free / 2**30:.1f} GiB of memory free"
    checkup.say(section, "cpu", told, {"cores": cores, "threads": threads, "free_bytes": free})
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        if variable in os.environ:
            checkup.note(f"{variable}={os.environ[variable]} is set in this shell")
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(i)
        left, whole = torch.cuda.mem_get_info(i)
        told = f"{about.name}, compute {about.major}.{about.minor}, "
        told += f"{left / 2**30:.1f} of {whole / 2**30:.1f} GiB free"
        checkup.say(section, f"cuda:{i}", told, {"name": about.name, "free_bytes": left, "bytes": whole})
    if torch.backends.mps.is_available():
        checkup.say(section, "mps", "there")
    _compare_with_driver(checkup, torch)


def _compare_with_driver(checkup: Checkup, torch: Any) -> None:
    if torch.cuda.is_available() or sys.platform == "darwin":
        return
    built = torch.version.cuda or getattr(torch.version, "hip", None)
    has_gpu = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if has_gpu and not built:
        checkup.wrong(
            f"there is an NVIDIA driver, and torch {torch.__version__} is built for CPUs only",
            "install a build of torch for CUDA, see https://pytorch.org/get-started/locally",
        )
    elif has_gpu:
        checkup.wrong(
            f"there is an NVIDIA driver, and torch (CUDA {built}) finds no usable GPU",
            "compare with nvidia-smi: a driver older than this CUDA, or CUDA_VISIBLE_DEVICES that hides it",
        )
    elif built:
        checkup.note(f"torch is built for CUDA {built} and finds no GPU: the CPU is used")


def look_at_openmp(checkup: Checkup) -> None:
    """Libraries of threads in this process; two OpenMP runtimes get in each other's way."""
    from threadpoolctl import threadpool_info

    found = threadpool_info()
    names = sorted({Path(p["filepath"]).name for p in found if p["user_api"] == "openmp"})
    blas = sorted({f"{p['internal_api']} {p['version']}" for p in found if p["user_api"] == "blas"})
    checkup.say("devices", "openmp", ", ".join(names) or "none", names)
    checkup.say("devices", "blas", ", ".join(blas) or "none", blas)
    kinds = {p["prefix"] for p in found if p["user_api"] == "openmp"}
    if len(kinds) > 1:
        text = f"{len(kinds)} OpenMP runtimes are loaded ({', '.join(names)})"
        checkup.note(f"{text}; if a run hangs or crashes, set OMP_NUM_THREADS=1")


def look_at_precision(checkup: Checkup, device: str) -> None:
    """Time the bundled model in float32 and bfloat16 and compare with what "auto" takes."""
    import torch

    from nimbus_sd.engine.device import PRECISIONS, deploy, resolve_precision
    from nimbus_sd.models.loading import load

    net, where = load("nimbus-sd-s").net, torch.device(device)
    image = torch.rand((1, 2, _SIDE, _SIDE), generator=torch.Generator().manual_seed(0))
    right = _forward(torch, deploy(net, torch.device("cpu"), "float32"), image)[0]
    auto = resolve_precision("auto", where)
    other = "bfloat16" if auto == "float32" else "float32"
    speed, off = {}, {}
    for precision in (auto, other):
        try:
            prepared = deploy(net, where, precision)
            found, seconds = _forward(torch, prepared, image.to(where, PRECISIONS[precision]))
        except Exception as error:
            if precision == auto:
                raise
            checkup.note(f"{device} can't compute in {precision} ({type(error).__name__})")
            continue
        speed[precision] = _SIDE**2 / seconds
        off[precision] = float((found - right).abs().max())
    told = ", ".join(f"{p} {v / 1e6:.2g} Mpx/s" for p, v in speed.items())
    facts = {"auto": auto, "pixels_per_second": speed, "largest_difference": off}
    checkup.say("precision", device, f"auto is {auto}; measured: {told}", facts)
    if not off[auto] < _FAR[auto]:  # NaN too
        text = f"{device}: probabilities in {auto} differ by {off[auto]:.2g} from those of the CPU in float32"
        checkup.wrong(text, f"pass --precision {other}, or --device cpu")
    if speed.get(other, 0) > 1.2 * speed[auto] and off[other] < _FAR[other]:
        checkup.note(f"{device}: {other} is faster here than what auto takes; pass --precision {other}")


def _forward(torch: Any, net: Any, image: Any) -> tuple[Any, float]:
    """Probabilities, float32 on the CPU, and the seconds of the best of three passes."""
    seconds = []
    with torch.inference_mode():
        found = net(image)  # the first pass prepares
        for _ in range(3):
            start = time.perf_counter()
            found = torch.sigmoid(net(image).float()).cpu()
            seconds.append(time.perf_counter() - start)
    return found, min(seconds)


def look_at_weights(checkup: Checkup) -> None:
    """Registered weights: there, and what their cards say."""
    from nimbus_sd.models.hub import cache_folder
    from nimbus_sd.models.loading import sha256
    from nimbus_sd.models.registry import WEIGHTS, cards

    for card in cards().values():
        folder = cache_folder() / card.name if card.weights_url else WEIGHTS / card.name
        file = folder / card.weights_file
        if not file.is_file() and card.weights_url:
            checkup.say("weights", card.name, f"not fetched (nimbus-sd models {card.name} --fetch)", False)
            continue
        found = sha256(file)
        fits = not card.sha256 or found == card.sha256
        size = f"{file.stat().st_size / 1e6:.1f} MB"
        checkup.say("weights", card.name, f"{size}, hash {'as its card says' if fits else 'differs'}", fits)
        if not fits:
            checkup.wrong(f"{file}: its hash is not the card's", "install nimbus-sd again")
    offline = [
        v for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(v, "0") not in ("", "0")
    ]
    if offline:
        checkup.note(f"{', '.join(offline)} is set: weights can't be downloaded")


def look_at_cache(checkup: Checkup) -> None:
    """Where downloads go: size, room, whether it can be written to."""
    from nimbus_sd.models.hub import cache_folder

    folder = cache_folder()
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0
    parent = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(parent).free
    told = f"{folder}, {size / 1e6:.1f} MB, {free / 1e9:.1f} GB of disk free"
    checkup.say("disk", "cache", told, {"path": str(folder), "bytes": size, "free_bytes": free})
    do = "set NIMBUS_SD_CACHE to a folder that you may write to"
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        checkup.wrong(f"the cache {folder} can't be written to ({error.strerror})", do)
    if free < _LOW_SPACE:
        checkup.note(f"little disk is left for the cache: {free / 1e9:.1f} GB")


def look_at_stores(checkup: Checkup) -> None:
    """Write a small SpatialData store with a table and read it again; say how much room there is."""
    import numpy as np
    import spatialdata as sd

    from nimbus_sd import datasets, io

    free = shutil.disk_usage(tempfile.gettempdir()).free
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sdata = datasets.simulated_tissue(n_fovs=1, shape=(64, 64))
        sdata.write(Path(folder) / "check.zarr")
        io.write_table(sdata, "truth")
        back = sd.read_zarr(Path(folder) / "check.zarr")
        same = np.array_equal(back["fov0_labels"].data.compute(), sdata["fov0_labels"].data)
    if not same:
        msg = "labels read back differ from those written"
        raise RuntimeError(msg)
    seconds = time.perf_counter() - start
    told = f"written and read back in {seconds:.1f} s; {tempfile.gettempdir()} has {free / 1e9:.1f} GB free"
    checkup.say("disk", "zarr store", told, {"seconds": round(seconds, 3), "temporary_free_bytes": free})
    if free < _LOW_SPACE:
        checkup.note(f"little disk is left in {tempfile.gettempdir()}: {free / 1e9:.1f} GB")


def look_at_limits(checkup: Checkup) -> None:
    """How many files may be open."""
    import resource  # not on Windows

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    checkup.say("disk", "open files", f"{files:,} at most", files)
    if files < _FEW_FILES:
        checkup.note(f"only {files} files may be open: for large stores, ulimit -n 4096")


def look_at_prediction(checkup: Checkup) -> None:
    """Score a small simulated field of view, as ``nimbus-sd predict`` does."""
    from nimbus_sd import datasets, tl

    sdata = datasets.simulated_tissue(n_fovs=1, shape=(160, 160), channels=["CD3", "CD20", "PanCK"])
    start = time.perf_counter()
    tl.predict(sdata, progress=False)
    seconds = time.perf_counter() - start
    table = sdata["nimbus"]
    told = f"{table.n_obs} cells x {table.n_vars} markers in {seconds:.1f} s"
    checkup.say("prediction", "nimbus-sd-s", told, {"seconds": round(seconds, 3), "n_cells": table.n_obs})
