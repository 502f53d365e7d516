"""Tests that need an environment of their own; each nox session ``ecosystem-*`` runs one group of them.

``NIMBUS_SD_ECOSYSTEM`` names the group. Without it every test here is skipped; with it the
other groups are left out, and a skipped test is a failed one: the environment was made for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import pytest

GROUPS = ("lowest", "newest", "neighbours", "viewers", "torchless")
SHOWN = (
    "python", "torch", "spatialdata", "anndata", "scanpy", "squidpy", "dask", "zarr", "numpy", "pandas",
    "ome-zarr", "sopa", "harpy-analysis", "spatialdata-plot", "napari", "napari-spatialdata", "vitessce",
)  # fmt: skip
GROUP = os.environ.get("NIMBUS_SD_ECOSYSTEM", "")


def installed(name: str) -> str:
    """Version of a distribution; empty if there is none."""
    if name == "python":
        return ".".join(map(str, sys.version_info[:3]))
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def pytest_report_header() -> list[str]:
    if not GROUP:
        return []
    if GROUP not in GROUPS:
        msg = f"NIMBUS_SD_ECOSYSTEM={GROUP!r}; valid: {', '.join(GROUPS)}"
        raise pytest.UsageError(msg)
    found = ", ".join(f"{name} {installed(name)}" for name in SHOWN if installed(name))
    return [f"ecosystem {GROUP}: {found}"]


def _groups_of(item: pytest.Item) -> set[str]:
    return {name for mark in item.iter_markers("ecosystem") for name in mark.args}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.get_closest_marker("ecosystem")]
    if not GROUP:
        for item in ours:
            session = ", ".join(f"ecosystem-{name}" for name in sorted(_groups_of(item)))
            item.add_marker(pytest.mark.skip(reason=f"needs an environment of its own: nox -s {session}"))
        return
    others = [item for item in ours if GROUP not in _groups_of(item)]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if GROUP and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("ecosystem"):
        report.outcome = "failed"
        report.longrepr = f"skipped in the session that was made for it: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def program() -> Callable[..., str]:
    """Run Python code as a program of its own; return what it prints."""

    def run(code: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            env=os.environ | {"MPLBACKEND": "Agg"} | variables,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run
