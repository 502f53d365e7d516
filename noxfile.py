"""Every check of the project; ``nox -l`` lists them. All installs go through constraints.txt."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "typing", "imports", "tests"]
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
CONSTRAINTS = ("-c", "constraints.txt")


def _install(session: nox.Session, *groups: str, project: str = "-e .") -> None:
    wanted = [item for group in groups for item in nox.project.dependency_groups(PYPROJECT, group)]
    session.install(*CONSTRAINTS, *project.split(), *wanted)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the fast tests (simulated images only)."""
    _install(session, "test")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session(python=PYTHONS, default=False)
def tests_all(session: nox.Session) -> None:
    """Run the fast tests on every Python that the classifiers name."""
    _install(session, "test")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*CONSTRAINTS, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types."""
    _install(session, "lint")
    session.run("mypy")


@nox.session
def imports(session: nox.Session) -> None:
    """Check that imports only go down the stairs."""
    _install(session, "lint")
    session.run("lint-imports")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation, executing the tutorials; warnings are errors."""
    _install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-b", "html", "docs", "docs/_build/html")


@nox.session(default=False)
def tutorials(session: nox.Session) -> None:
    """Execute each tutorial as a program of its own."""
    _install(session, "test", "tutorials")
    session.run("pytest", "-m", "tutorials", "-n", "2", *session.posargs)


@nox.session(default=False)
def workflows(session: nox.Session) -> None:
    """Run the Snakemake and Nextflow examples; nextflow has to be on the path or two tests are skipped."""
    _install(session, "test")
    session.install("snakemake>=9", "snakemake-executor-plugin-slurm>=2", "groovy-parser>=0.2.2")
    session.run("pytest", "-m", "workflows", *session.posargs)


@nox.session(default=False)
def changelog(session: nox.Session) -> None:
    """Show the changelog of the next release; fragments that can't be read are errors."""
    session.install(*CONSTRAINTS, "towncrier")
    session.run("towncrier", "build", "--draft", "--version", "next")


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Refuse a release whose tag, changelog and fragments don't agree."""
    tag = session.run("git", "describe", "--tags", "--exact-match", external=True, silent=True)
    version = str(tag).strip().removeprefix("v")
    if f"## {version} (" not in Path("CHANGELOG.md").read_text(encoding="utf-8"):
        session.error(f"CHANGELOG.md has no {version}: towncrier build --version {version}, commit, tag anew")
    if left := [p.name for p in Path("changelog.d").glob("*.*.md")]:
        session.error(f"not in the changelog: {', '.join(left)}")


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build sdist and wheel, check them, install the wheel alone and test that, not the checkout."""
    shutil.rmtree("dist", ignore_errors=True)
    session.install(*CONSTRAINTS, "build", "hatchling", "hatch-vcs", "twine")
    session.run("python", "-m", "build", "--no-isolation")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    wheel = next(Path("dist").glob("*.whl"))  # built from the sdist
    _install(session, "test", project=str(wheel))
    session.run(
        "python", "-m", "tarfile", "-e", str(next(Path("dist").glob("*.tar.gz"))), session.create_tmp()
    )
    source = next(Path(session.create_tmp()).glob("nimbus_sd-*"))
    session.run(
        "pytest",
        "-c",
        f"{source}/pyproject.toml",
        "--rootdir",
        str(source),
        f"{source}/tests/test_release.py",
    )
    tests_dir = Path("tests").resolve()
    # outside the checkout, so that src/ can't be what is imported
    session.chdir(session.create_tmp())
    session.run(
        "pytest",
        "-n",
        "2",
        "--rootdir",
        str(tests_dir.parent),
        "-c",
        str(tests_dir.parent / "pyproject.toml"),
        str(tests_dir),
    )


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Drive the review page and the report in a headless Chromium, which has to be installed."""
    _install(session, "test")
    session.run("pytest", "-m", "browser", *session.posargs, env={"NIMBUS_SD_ALONE": "1"})


@nox.session(default=False)
def parity(session: nox.Session) -> None:
    """Compare with the published implementation's outputs and score the real images."""
    _install(session, "test")
    session.run("pytest", "-m", "parity or realdata", *session.posargs)


def _harpy(session: nox.Session) -> str:
    """Make an environment with harpy, once; return its interpreter."""
    env = Path(session.create_tmp()) / "harpy"
    python = env / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        session.run("python", "-m", "venv", str(env))
    session.run(str(python), "-m", "pip", "install", "--quiet", "harpy-analysis==0.4.2", external=True)
    return str(python)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run every benchmark and record what the documentation shows; takes hours."""
    _install(session)

    def record(script: str, *words: str) -> None:
        session.run("python", "benchmarks/record.py", script, *words)

    env = Path(session.create_tmp()) / "nimbus-inference"
    for name in ("forward", "reader", "tiles", "simulated", "cluster", "som", "patches", "embed"):
        record(name)
    record("embedding_simulated", "--architectures", "next_channel")
    record("subtype_patches")
    record("subtyping_simulated", "--compare-weights", "--minutes", "10")
    record("noise_robust")
    record("memory")
    record("memory", "--as", "memory-plan", "--", "--plan")
    record("integrated_expression", "--harpy-python", _harpy(session))
    record("nimbus_inference", "--env", str(env))
    session.run("python", "benchmarks/gpu.py")
    if os.environ.get("NIMBUS_SD_DATA"):
        for script in ("dcis", "codex", "phenotypes"):
            record(script)
        record("phenotypes", "--as", "phenotypes-average", "--", "--linkage", "average")
        record("embedding_dcis", "--epochs", "3")
        record("finetune", "--out", "runs/finetuned")


# The ecosystem: other versions, other packages, other Pythons. uv resolves, as pip can't be asked for the
# lowest versions; torch stays what pip found for constraints.txt, whatever a neighbour would pull.

_NO_TORCH = 'torch ; python_version < "3"\ntorchvision ; python_version < "3"\n'
_NEEDED = ("pytest>=8.3", "hypothesis>=6.120")


def _environment(session: nox.Session, *wanted: str, torch: bool = True, lowest: bool = False) -> None:
    versions = Path("constraints.txt").read_text("utf-8").split()
    pinned = [line for line in versions if line.startswith("torch==")]
    session.install("uv", *(pinned if torch else ()))
    overrides = Path(session.create_tmp()) / "overrides.txt"
    overrides.write_text(_NO_TORCH, "utf-8")
    python = Path(session.bin) / ("python.exe" if os.name == "nt" else "python")
    # what is there already would be kept, and these sessions are about moving it
    how = ("--upgrade", "--python", str(python), "--override", str(overrides))
    order = ("--resolution", "lowest-direct") if lowest else ()
    session.run("uv", "pip", "install", *how, *order, *wanted, *_NEEDED)


def _ecosystem(session: nox.Session, group: str, *more: str) -> None:
    """Run the group's own tests, then tests of the ordinary suite."""
    # plugins that neighbours register with pytest warn when loaded, and warnings are errors
    env = {"NIMBUS_SD_ECOSYSTEM": group, "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    # the suite's own conftest.py needs torch
    alone = ("--confcutdir", "tests/ecosystem")
    session.run("pytest", *alone, "-m", "ecosystem", "tests/ecosystem", *session.posargs, env=env)
    if more:
        # tests of remote stores need it; it moves lower bounds, so it comes after these were looked at
        session.install("moto[server]>=5.1")
        # deprecations of third parties, seen before these versions were out or after, are not ours
        quiet = ("-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning")
        session.run("pytest", *quiet, *more, *session.posargs, env=env)


_SCVERSE = (
    "tests/io/test_read_fovs.py",
    "tests/io/test_write_table.py",
    "tests/sdata/test_maps.py",
    "tests/pp/test_integrated_expression.py",
    "tests/pp/test_gate.py",
    "tests/tl/test_predict.py",
    "tests/tl/test_predict_into.py",
    "tests/tl/test_downstream.py",
    "tests/tl/test_flowsom.py",
    "tests/pl/test_tables.py",
)
"""Tests that go through what spatialdata, anndata, scanpy, squidpy, dask and zarr do for us."""


@nox.session(name="ecosystem-lowest", python="3.11", venv_backend="venv", default=False)
def ecosystem_lowest(session: nox.Session) -> None:
    """Install every lower bound of pyproject.toml and run what depends on other packages."""
    _environment(session, "-e", ".[flowsom,leiden]", lowest=True)
    _ecosystem(session, "lowest", *_SCVERSE)


@nox.session(name="ecosystem-newest", python="3.11", venv_backend="venv", default=False)
def ecosystem_newest(session: nox.Session) -> None:
    """Install the newest of everything and run what depends on other packages."""
    _environment(session, "-e", ".[flowsom,leiden]")
    _ecosystem(session, "newest", *_SCVERSE)


@nox.session(name="ecosystem-neighbours", python="3.11", venv_backend="venv", default=False)
def ecosystem_neighbours(session: nox.Session) -> None:
    """Run on objects that sopa and harpy wrote, in one environment with both."""
    _environment(session, "-e", ".", "sopa", "harpy-analysis==0.4.2")
    _ecosystem(session, "neighbours")


@nox.session(name="ecosystem-viewers", python="3.11", venv_backend="venv", default=False)
def ecosystem_viewers(session: nox.Session) -> None:
    """Open our output with spatialdata-plot, napari-spatialdata and Vitessce, without a screen."""
    session.env["QT_QPA_PLATFORM"] = "offscreen"
    _environment(
        session,
        "-e",
        ".",
        "spatialdata-plot",
        "napari-spatialdata",
        "napari",
        "PyQt6",
        "vitessce>=3.5",
        "anywidget",
        "starlette",
        "uvicorn",
    )
    _ecosystem(session, "viewers")


@nox.session(name="ecosystem-torchless", python=["3.12", "3.13"], venv_backend="venv", default=False)
def ecosystem_torchless(session: nox.Session) -> None:
    """Run what needs no torch on the newest Pythons, with the newest of everything but torch."""
    _environment(session, "-e", ".[flowsom,leiden,review]", "harpy-analysis", "spatialdata-plot", torch=False)
    _ecosystem(session, "torchless")
