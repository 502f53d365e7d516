"""``nimbus-sd doctor``: what is installed, what this machine can do, and what is wrong."""

from __future__ import annotations

import sys
import warnings
from functools import partial

import typer

from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._checkup import Checkup
from nimbus_sd.cli._options import AsJson
from nimbus_sd.cli._requirements import look_at_packages

_AGAIN = 'install it again: pip install --force-reinstall "{}"'
_REPORT = "if all packages above fit, report it with this output"


def doctor(as_json: AsJson = False) -> None:
    """Check the installation, devices, cache and weights, and say what is wrong and what to do."""
    checkup = examine()
    answer(checkup.to_dict(), checkup.lines(), as_json=as_json)
    if checkup.problems:
        raise typer.Exit(1)


def examine() -> Checkup:
    """Run every probe; one that fails is a finding and keeps no other from running."""
    from nimbus_sd.cli import _probes as probes

    checkup = Checkup()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkup.probe("this program", "version", _REPORT, probes.look_at_program)
        checkup.probe(
            "packages", "declared", 'install the package: pip install "nimbus-sd"', look_at_packages
        )
        for module in probes.IMPORTED:
            again = _AGAIN.format(module.split(".")[0].replace("skimage", "scikit-image"))
            checkup.probe("imports", module, again, partial(probes.look_at_import, module=module))
        checkup.probe("devices", "cpu", _AGAIN.format("torch"), probes.look_at_machine)
        checkup.probe("devices", "threads", _AGAIN.format("threadpoolctl"), probes.look_at_openmp)
        for device in _devices():
            do = "pass --device cpu" if device != "cpu" else _REPORT
            checkup.probe("precision", device, do, partial(probes.look_at_precision, device=device))
        checkup.probe("weights", "registered", "install nimbus-sd again", probes.look_at_weights)
        checkup.probe("disk", "cache", "set NIMBUS_SD_CACHE to another folder", probes.look_at_cache)
        checkup.probe(
            "disk", "zarr store", "free some disk, or set TMPDIR; else: " + _REPORT, probes.look_at_stores
        )
        if sys.platform != "win32":
            checkup.probe("disk", "open files", _REPORT, probes.look_at_limits)
        checkup.probe("prediction", "nimbus-sd-s", _REPORT, probes.look_at_prediction)
    return checkup


def _devices() -> list[str]:
    try:
        from nimbus_sd.engine.device import available_devices

        return [name.strip("'") for name in available_devices()]
    except Exception:  # noqa: BLE001 - what is wrong with torch is said by its own probe
        return ["cpu"]
