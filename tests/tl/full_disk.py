"""Run by test_faults: write a table where the kernel refuses what it would refuse on a full disk; exit 7."""

import resource
import signal
import sys

import spatialdata as sd

import nimbus_sd as nb

if __name__ == "__main__":
    store, model = sys.argv[1:]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sdata = sd.read_zarr(store)
    nb.tl.predict(sdata, model=model, tile=32, device="cpu", n_threads=0, overwrite=True, progress=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
    try:
        nb.io.write_table(sdata, "nimbus", overwrite=True)
    except BaseException as error:  # noqa: BLE001  whichever error comes up, the code says it
        sys.exit(7 if "File too large" in repr(error) else 1)
