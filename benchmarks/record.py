"""Run a benchmark and keep what it prints, for the documentation's page of figures.

    python benchmarks/record.py forward --repeats 2      # runs benchmarks/forward.py --repeats 2
    python benchmarks/record.py memory --as memory-plan -- --plan

The output goes to ``benchmarks/results/<name>.txt`` under a few lines that say which command, when, from
which commit and on what it ran. A failed run leaves the record as it was.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHOWN = ("torch", "numpy", "dask", "zarr", "spatialdata")


def main() -> None:
    """Run and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "script", choices=sorted(p.stem for p in HERE.glob("[a-z]*.py") if p != Path(__file__))
    )
    parser.add_argument("--as", dest="name", help="name of the record, if it is not the script's")
    given, rest = parser.parse_known_args()
    rest = [a for a in rest if a != "--"]
    command = [sys.executable, str(HERE / f"{given.script}.py"), *rest]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        lines = []
        for line in run.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if run.returncode:
        sys.exit(run.returncode)
    about = {
        "command": " ".join(["python", f"benchmarks/{given.script}.py", *rest]),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores; "
        + ", ".join(f"{package} {version(package)}" for package in SHOWN),
        "took": f"{time.monotonic() - start:.0f} s",
    }
    RESULTS.mkdir(exist_ok=True)
    head = "".join(f"# {key}: {value}\n" for key, value in about.items())
    body = re.sub(r"\x1b\[[0-9;]*m", "", "".join(lines)).strip("\n")
    (RESULTS / f"{given.name or given.script}.txt").write_text(f"{head}\n{body}\n", "utf-8")


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=HERE, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", "../src", ".")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" and changes to it" if changed else "")


if __name__ == "__main__":
    main()
