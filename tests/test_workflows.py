"""The Snakemake and Nextflow examples: their commands exist, and a small cohort goes through both.

``nox -s workflows`` runs the marked ones. Snakemake must be on the PATH, or named by
NIMBUS_SD_SNAKEMAKE. Nextflow is run where it is on the PATH; NIMBUS_SD_NEXTFLOW names it
and makes it a must.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import tifffile
import typer.main

from nimbus_sd import datasets
from nimbus_sd.cli import app

WORKFLOWS = Path(__file__).parents[1] / "workflows"
SNAKEFILE = WORKFLOWS / "snakemake" / "Snakefile"
NEXTFLOW = WORKFLOWS / "nextflow" / "main.nf"
CHANNELS = ["HH3", "CD3", "CD20", "PanCK"]
SAMPLES = ("patient1", "patient2")
PROCESS = re.compile(
    r'^process (\w+) \{.*?script:\s*"""(.*?)"""\s*stub:\s*"""(.*?)"""', re.DOTALL | re.MULTILINE
)


def commands(text):
    """Lists of words of every call of ``nimbus-sd``, adjacent string literals joined."""
    text = re.sub(r'"\s*\n\s*"', "", text)
    return [shlex.split(line.rstrip('",')) for line in re.findall(r"nimbus-sd [^\n>]*", text)]


def known_options():
    """Command to its options."""
    group = typer.main.get_command(app)
    return {
        name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        for name, command in group.commands.items()
    }


@pytest.mark.parametrize("path", [SNAKEFILE, NEXTFLOW], ids=["snakemake", "nextflow"])
def test_every_command_and_option_exists(path):
    found, known = commands(path.read_text("utf-8")), known_options()
    assert [words[1] for words in found] == ["convert", "predict", "cluster", "report"]
    for words in found:
        unknown = {w for w in words if w.startswith("--")} - known[words[1]]
        assert not unknown, f"{words[1]}: {unknown}"


def test_the_options_that_the_configuration_sets_exist():
    import yaml

    config, known = yaml.safe_load((SNAKEFILE.parent / "config.yaml").read_text("utf-8")), known_options()
    for command in ("convert", "predict", "cluster"):
        assert {f"--{name.replace('_', '-')}" for name in config[command]} <= known[command]


def run(words, folder, env=None):
    """Run a program with this interpreter's ``nimbus-sd`` on the PATH; return what it printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": path, **(env or {})},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,
        check=False,
    )
    logs = "\n".join(p.read_text("utf-8") for p in sorted(folder.glob("results/logs/*.log")))
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{logs}"
    return done.stdout


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two patients as folders of TIFFs, and the sample sheet that comes with the examples."""
    folder = tmp_path_factory.mktemp("cohort")
    for seed, sample in enumerate(SAMPLES):
        sdata = datasets.simulated_tissue(n_fovs=1, shape=(128, 128), channels=CHANNELS, seed=seed)
        images, masks = (folder / "data" / sample / name for name in ("image_data/fov0", "segmentation"))
        images.mkdir(parents=True)
        masks.mkdir()
        for name, plane in zip(CHANNELS, np.asarray(sdata["fov0_image"].data), strict=True):
            tifffile.imwrite(images / f"{name}.tiff", plane)
        tifffile.imwrite(masks / "fov0_whole_cell.tiff", np.asarray(sdata["fov0_labels"].data))
    shutil.copy(WORKFLOWS / "samples.csv", folder)
    (folder / "mine.yaml").write_text("convert:\n  mpp: 0.5\n")
    return folder


def snakemake(*words):
    program = os.environ.get("NIMBUS_SD_SNAKEMAKE") or shutil.which("snakemake")
    if program is None or shutil.which(program) is None:
        pytest.fail("there is no snakemake: pip install snakemake, or set NIMBUS_SD_SNAKEMAKE to it")
    return [program, "--snakefile", str(SNAKEFILE), "--cores", "1", *words]


def check_results(folder):
    """Both samples' cells are in one table, clustered together, each with a report."""
    cells = ad.read_h5ad(folder / "cells.h5ad")
    assert set(cells.obs["sample"]) == set(SAMPLES)
    assert set(cells.var_names) == {"CD3", "CD20", "PanCK"}
    clusters = [
        ad.read_zarr(folder / "clustered" / f"{s}.zarr" / "tables" / "nimbus").obs["cluster"] for s in SAMPLES
    ]
    assert sum(map(len, clusters)) == cells.n_obs
    assert list(clusters[0].cat.categories) == list(clusters[1].cat.categories)
    assert (folder / "clusters.png").stat().st_size > 1000
    for sample in SAMPLES:
        assert sample in (folder / "reports" / f"{sample}.html").read_text("utf-8")


@pytest.mark.workflows
def test_snakemake_plans_the_cohort(cohort):
    plan = run(snakemake("--configfile", "mine.yaml", "--dry-run", "--quiet", "rules"), cohort)
    assert re.search(r"^convert +2$", plan, re.MULTILINE)
    assert re.search(r"^predict +1$", plan, re.MULTILINE)
    assert re.search(r"^report +2$", plan, re.MULTILINE)


@pytest.mark.workflows
def test_snakemake_plans_for_slurm(cohort):
    profile = SNAKEFILE.parent / "profiles" / "slurm"
    plan = run(snakemake("--profile", str(profile), "--dry-run"), cohort)
    assert re.search(r"^rule predict:(\n .*)*slurm_partition=gpu.*gres=gpu:1", plan, re.MULTILINE)


@pytest.mark.workflows
@pytest.mark.parametrize(
    ("sheet", "words"),
    [
        ("sample,images,labels\na/b,data,data\n", "a/b"),
        ("sample,images\na,data\n", "labels"),
        ("sample,images,labels\na,data,data\na,data,data\n", "one twice"),
    ],
)
def test_snakemake_refuses_a_wrong_sheet(cohort, sheet, words):
    (cohort / "wrong.csv").write_text(sheet)
    with pytest.raises(AssertionError, match=words):
        run(snakemake("--config", "samples=wrong.csv", "--dry-run"), cohort)


@pytest.mark.workflows
def test_snakemake_runs_the_cohort(cohort):
    run(snakemake("--configfile", "mine.yaml"), cohort)
    check_results(cohort / "results")
    again = run(snakemake("--configfile", "mine.yaml", "--dry-run"), cohort)
    assert "Nothing to be done" in again


def nextflow(*words):
    asked = os.environ.get("NIMBUS_SD_NEXTFLOW")
    program = shutil.which(asked or "nextflow")
    if program is None and asked:
        pytest.fail(f"NIMBUS_SD_NEXTFLOW={asked}: there is no such program")
    if program is None:
        pytest.skip("there is no nextflow: main.nf is only parsed, and its commands run by hand")
    return [program, "run", str(NEXTFLOW), "--convert", "--mpp 0.5", *words]


@pytest.mark.workflows
def test_nextflow_stub_run(cohort, tmp_path):
    run(nextflow("-stub-run", "--out", str(tmp_path / "out")), cohort, {"NXF_WORK": str(tmp_path / "work")})
    assert sorted(p.name for p in (tmp_path / "out" / "reports").iterdir()) == [f"{s}.html" for s in SAMPLES]


@pytest.mark.workflows
def test_nextflow_runs_the_cohort(cohort, tmp_path):
    run(nextflow("--out", str(tmp_path / "out")), cohort, {"NXF_WORK": str(tmp_path / "work")})
    check_results(tmp_path / "out")


@pytest.mark.workflows
@pytest.mark.parametrize("name", ["main.nf", "nextflow.config"])
def test_nextflow_files_are_groovy(name):
    from groovy_parser.parser import parse_and_digest_groovy_content

    content = (NEXTFLOW.parent / name).read_text("utf-8")
    assert parse_and_digest_groovy_content(content)["rule"][0] == "compilation_unit"


class TestNextflowByHand:
    """What its processes run, in order, with names filled in: all but Nextflow's own part."""

    def task(self, folder, name, *, stub, **values):
        """Run one process's shell in its own folder, as Nextflow does."""
        folder.mkdir(parents=True, exist_ok=True)
        scripts = {m[1]: m[3 if stub else 2] for m in PROCESS.finditer(NEXTFLOW.read_text("utf-8"))}
        values |= {"params.convert": "--mpp 0.5", "params.predict": "", "params.cluster": "--method leiden"}
        script = re.sub(r"(?<!\\)\$\{([\w.]+)\}", lambda m: values[m[1]], scripts[name]).replace("\\$", "$")
        run(["bash", "-ue", "-c", script], folder)

    @pytest.mark.workflows
    @pytest.mark.parametrize("stub", [True, False], ids=["stub", "run"])
    def test_the_scripts_fit_together(self, cohort, tmp_path, stub):
        predict, cluster, out = (tmp_path / name for name in ("predict", "cluster", "out"))
        predict.mkdir()
        for sample in SAMPLES:
            folder = tmp_path / f"convert-{sample}"
            folder.mkdir()
            (folder / "images").symlink_to(cohort / "data" / sample / "image_data")
            (folder / "labels").symlink_to(cohort / "data" / sample / "segmentation")
            self.task(folder, "CONVERT", stub=stub, sample=sample)
            (predict / f"{sample}.zarr").symlink_to(folder / f"{sample}.zarr")
        self.task(predict, "PREDICT", stub=stub, stores=" ".join(f"{s}.zarr" for s in SAMPLES))
        (cluster / "scores").mkdir(parents=True)
        for sample in SAMPLES:
            (cluster / "scores" / f"{sample}.zarr").symlink_to(predict / "scores" / f"{sample}.zarr")
        self.task(cluster, "CLUSTER", stub=stub)
        (out / "reports").mkdir(parents=True)
        for sample in SAMPLES:
            (out / "reports" / f"{sample}.zarr").symlink_to(cluster / "clustered" / f"{sample}.zarr")
            values = {"store": f"{sample}.zarr", "store.baseName": sample}
            self.task(out / "reports", "REPORT", stub=stub, **values)
        for file in (predict / "cells.h5ad", cluster / "clusters.png", cluster / "clustered"):
            (out / file.name).symlink_to(file)
        if not stub:
            check_results(out)
