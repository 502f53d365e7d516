"""What a release states in several places says the same everywhere."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
METADATA = PROJECT["project"]
#: sessions that no workflow runs, and why
LOCAL = {
    "bench": "measures ratios, which shared runners spoil",
    "parity": "needs images and reference outputs that are not in the repository",
}


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text("utf-8"))


def sessions():
    """Names of the nox sessions; one that runs on every Python stands once."""
    for node in ast.parse((ROOT / "noxfile.py").read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            for decorator in map(ast.unparse, node.decorator_list):
                if decorator.startswith("nox.session"):
                    named = re.search(r"name='([^']+)'", decorator)
                    yield named[1] if named else node.name


def words_in(thing):
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, list):
        return [word for part in thing for word in words_in(part)]
    return re.findall(r"[\w.-]+", str(thing))


def test_the_workflows_are_the_nox_sessions():
    named = set(sessions())
    run = {
        word.split("-3.")[0]
        for file in (ROOT / ".github" / "workflows").glob("*.yml")
        for word in words_in(workflow(file.name)["jobs"])
    }
    assert {"tests", "lint", "docs", "build", "release"} <= named
    assert named - run == set(LOCAL)


def test_every_session_that_a_workflow_names_exists():
    named = set(sessions())
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in workflow(file.name)["jobs"].values():
            matrix = job.get("strategy", {}).get("matrix", {})
            asked = [*matrix.get("session", []), *(i["session"] for i in matrix.get("include", []))]
            for step in job["steps"]:
                literal = re.search(r"nox --session ([\w .-]+)$", step.get("run", ""))
                asked += literal[1].split() if literal else []
            assert {a.split("-3.")[0] for a in asked} <= named, file.name


def test_the_tested_pythons_are_the_classified_ones():
    classified = {c.rsplit(" ", 1)[1] for c in METADATA["classifiers"] if re.search(r":: 3\.\d+$", c)}
    matrix = workflow("checks.yml")["jobs"]["tests"]["strategy"]["matrix"]["session"]
    assert {m.removeprefix("tests_all-") for m in matrix} == classified
    assert METADATA["requires-python"] == f">={min(classified, key=lambda v: int(v.split('.')[1]))}"


def test_citation_and_codemeta_say_what_the_package_says():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    codemeta = json.loads((ROOT / "codemeta.json").read_text("utf-8"))
    name, licence = METADATA["name"], METADATA["license"]
    assert citation["title"].startswith(f"{name}: ")
    assert (codemeta["name"], codemeta["description"]) == (name, METADATA["description"])
    assert citation["license"] == licence
    assert codemeta["license"].endswith(f"/{licence}")
    assert sorted(citation["keywords"]) == sorted(codemeta["keywords"]) == sorted(METADATA["keywords"])
    authors = [a["name"] for a in METADATA["authors"]]
    assert [a["name"] for a in citation["authors"]] == [a["name"] for a in codemeta["author"]] == authors
    assert citation["cff-version"] == "1.2.0"
    # the version is the tag's: written nowhere else, it can't be wrong anywhere
    assert METADATA["dynamic"] == ["version"]
    assert not {"version"} & (METADATA.keys() | citation.keys() | codemeta.keys())


KINDS = {t["directory"] for t in PROJECT["tool"]["towncrier"]["type"]}


@pytest.mark.parametrize(
    "fragment",
    [p for p in sorted((ROOT / "changelog.d").iterdir()) if p.name != "README.md"],
    ids=lambda p: p.name,
)
def test_fragments_can_be_gathered(fragment):
    name = re.fullmatch(r"[\w-]+\.(\w+)\.md", fragment.name)
    assert name, "changelog.d/<anything>.<kind>.md"
    assert name[1] in KINDS
    text = fragment.read_text("utf-8")
    assert text.strip(), "a fragment says something"
    assert len(text) < 900, "a sentence or two, not a page"


def test_the_draft_of_the_changelog_has_every_fragment():
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    squeezed = re.sub(r"\s+", "", done.stdout)
    for fragment in (ROOT / "changelog.d").glob("*.*.md"):
        assert re.sub(r"\s+", "", fragment.read_text("utf-8")) in squeezed, fragment.name


def test_the_policies_name_what_exists():
    policy = (ROOT / "SECURITY.md").read_text("utf-8")
    assert "weights_only=True" in policy
    reads = [p for p in (ROOT / "src").rglob("*.py") if "torch.load(" in p.read_text("utf-8")]
    assert reads
    for path in reads:
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
    server = (ROOT / "src/nimbus_sd/app/_server.py").read_text("utf-8")
    assert '_LOOPBACK = "127.0.0.1"' in server
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(template.read_text("utf-8"))
