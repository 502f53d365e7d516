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
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session(default=False)
def tutorials(session: nox.Session) -> None:
    """Execute each tutorial as a program of its own."""
    _install(session, "test", "docs")
    session.run("pytest", "-m", "tutorials", "-n", "2", *session.posargs)


@nox.session(default=False)
def workflows(session: nox.Session) -> None:
    """Run the Snakemake and Nextflow examples."""
    _install(session, "test")
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
    wheel = next(Path("dist").glob("*.whl"))
    _install(session, "test", project=str(wheel))
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
