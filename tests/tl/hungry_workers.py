"""Preloaded into dask workers by test_worker_memory: networks that want memory on inputs over 128 px tall.

``NIMBUS_TEST_HUNGER`` says how:

- ``grow``: take memory until the nanny kills the worker
- ``grow-once:FILE``: so, but only in the first worker that makes the file
- ``refuse:NAME``: ask for more than there can be, which raises; on the worker of that name
- ``refuse``: so, on all workers
"""

import os
import time
from pathlib import Path

import numpy as np
from torch.nn.modules.module import register_module_forward_pre_hook

TALL = 128
STEP = 32 << 20


def dask_setup(worker):
    how, _, which = os.environ["NIMBUS_TEST_HUNGER"].partition(":")

    def before(module, inputs):
        is_network = getattr(inputs[0], "ndim", 0) == 4 and inputs[0].shape[1] == 2
        if not is_network or inputs[0].shape[-2] <= TALL:
            return
        if how == "refuse" and which in ("", str(worker.name)):
            np.empty(1 << 55, np.uint8)
        if how == "grow" or (how == "grow-once" and is_first(which)):
            grow()

    register_module_forward_pre_hook(before)


def is_first(file):
    try:
        Path(file).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def grow():
    kept = []
    for _ in range((4 << 30) // STEP):
        kept.append(np.ones(STEP, np.uint8))
        time.sleep(0.02)  # the nanny looks every 100 ms
    time.sleep(30)
    msg = f"the nanny let a worker have {len(kept)} x {STEP} bytes"
    raise RuntimeError(msg)
