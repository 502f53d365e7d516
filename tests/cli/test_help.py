"""Help, completion and option names of every command: light, complete, and as the functions have them."""

import inspect
import os
import subprocess
import sys

import pytest
import typer

import nimbus_sd as nb
from nimbus_sd.cli import app

HEAVY = ("torch", "spatialdata", "anndata", "dask", "matplotlib", "pandas", "numpy", "scanpy", "zarr")
GROUP = typer.main.get_command(app)


def _commands(group, prefix=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = dict(_commands(GROUP))
NAMES = [" ".join(name) for name in COMMANDS]

# Python argument -> the option (or argument) that stands for it, or why there is none
IN_PLACE = {
    "sdata": "STORE: the object is a store",
    "data": "STORE, likewise, or training tiles",
    "adata": "STORE and --table: the table is in a store",
    "show": "figures are written",
    "client": "--scheduler: an address",
    "write": "always; --out-dir for another place",
    "path": "IMAGES",
    "open_browser": "--open",
}
FUNCTIONS = {
    "convert": nb.io.read_fovs,
    "predict": nb.tl.predict,
    "integrate": nb.pp.integrated_expression,
    "report": nb.app.report,
    "review": nb.app.review,
    "evaluate": nb.tl.evaluate,
    "calibrate": nb.tl.calibrate,
    "train": nb.tl.train,
    "finetune": nb.tl.finetune,
    "train-embedding": nb.tl.train_embedding,
    "embed": nb.tl.embed,
    "train-subtyper": nb.tl.train_subtyper,
    "subtype": nb.tl.predict_subtypes,
}
MORE = [("cluster", nb.tl.flowsom), ("cluster", nb.tl.phenograph), ("cluster", nb.tl.merge_clusters)]
EXCEPTIONS = {
    ("cluster", "key"): "--key-added",
    ("cluster", "node_key"): "--key-node",
}


def _options(name):
    command = COMMANDS[tuple(name.split())]
    return {
        o.lstrip("-") for p in command.params for o in (*p.opts, *p.secondary_opts, p.name.replace("_", "-"))
    }


@pytest.mark.parametrize(("name", "function"), [*FUNCTIONS.items(), *MORE])
def test_arguments_of_the_function_are_options_of_the_command(name, function):
    there = _options(name)
    missing = [
        argument
        for argument in inspect.signature(function).parameters
        if argument not in IN_PLACE
        and (name, argument) not in EXCEPTIONS
        and argument.replace("_", "-") not in there
    ]
    assert not missing, f"{name} lacks {missing}: add options, or say why not in EXCEPTIONS"


def test_exceptions_are_still_needed():
    functions = [*FUNCTIONS.items(), *MORE]
    for command, argument in EXCEPTIONS:
        assert any(n == command and argument in inspect.signature(f).parameters for n, f in functions)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_option_has_its_help(name):
    command = COMMANDS[tuple(name.split())]
    first = command.help.split("\n\n")[0].strip()
    assert first.endswith(".")
    assert len(first) <= 110
    for param in command.params:
        if param.name != "help" and not getattr(param, "hidden", False):
            assert getattr(param, "help", None), param.name
            assert "_" not in "".join(o for o in param.opts if o.startswith("--"))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("review", "models", "doctor")])
def test_every_command_that_computes_has_dry_run_and_json(name):
    assert {"dry-run", "json"} <= _options(name)


@pytest.mark.parametrize(
    "option",
    ["device", "precision", "progress", "json", "dry-run", "n-threads", "scheduler", "resume", "out-dir"],
)
def test_one_option_is_described_in_one_way(option):
    told = {}
    for name, command in COMMANDS.items():
        for param in command.params:
            if f"--{option}" in param.opts:
                told.setdefault(param.help, []).append(" ".join(name))
    assert len(told) == 1, told


def test_help_of_everything_is_light():
    """One process for all of them: what one help imports would be there for the next."""
    script = (
        "import sys\n"
        "from nimbus_sd.cli import main\n"
        f"for name in [[], *({[list(n) for n in COMMANDS]!r})]:\n"
        "    sys.argv = ['nimbus-sd', *name, '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, (name, end.code)\n"
        f"    heavy = set({HEAVY!r}) & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == len(COMMANDS) + 1


def _complete(*words):
    script = "import sys\nfrom nimbus_sd.cli import main\nmain()"
    env = {
        **os.environ,
        "_NIMBUS_SD_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["nimbus-sd", *words]),
        "COMP_CWORD": str(len(words)),
    }
    wrapper = f"import sys\nsys.argv = ['nimbus-sd']\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", wrapper], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pre",), {"predict"}),
        (("predict", "--model", "nimb"), {"nimbus-sd-s", "nimbus-v1"}),
        (("models", "nimbus-v"), {"nimbus-v1"}),
        (("cluster", "--method", "f"), {"flowsom"}),
        (("predict", "--precision", "b"), {"bfloat16"}),
        (("benchmark", "pan"), {"pan-multiplex"}),
    ],
)
def test_the_shell_completes_names(words, expected):
    assert set(_complete(*words)) == expected


def test_completion_is_light():
    script = (
        "import sys\n"
        "from nimbus_sd.cli._complete import model_names, one_of\n"
        "assert dict(model_names('nimbus-v')), one_of('a')('a')\n"
        f"heavy = set({HEAVY!r}) & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_completion_offers_the_registered_models():
    from nimbus_sd.cli._complete import model_names

    assert [name for name, _ in model_names("")] == nb.models.list()


@pytest.mark.parametrize(
    "arguments", [("moon",), ("predict",), ("predict", "a", "--moon"), ("predict", "a", "--views", "many")]
)
def test_wrong_usage_is_2_and_says_what(nimbus, arguments):
    code, out, err = nimbus(*arguments)
    assert (code, out) == (2, "")
    assert "Usage:" in err
