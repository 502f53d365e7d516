"""The directive ``nimbus-commands``: each command of the program, from the program itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def program() -> Any:
    """The program as a tree of commands."""
    from typer.main import get_command

    from nimbus_sd.cli import app

    return get_command(app)


def commands(group: Any, before: str = "nimbus-sd") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def _plain(text: str) -> str:
    """Text of the program as Markdown that shows it as it is."""
    text = inspect.cleandoc(text.replace("\b", ""))
    return re.sub(r"([<>|*_\[\]{}])", r"\\\1", text)


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = (parameter.metavar or parameter.name.upper()).strip("[]")
        return f"`{name}{'...' if parameter.nargs == -1 and not name.endswith('...') else ''}`"
    names = f"`{' '.join([', '.join(parameter.opts), _value(parameter)]).strip()}`"
    return names + (f" / `{', '.join(parameter.secondary_opts)}`" if parameter.secondary_opts else "")


def _value(parameter: Any) -> str:
    """What kind of value an option takes."""
    if parameter.is_flag:
        return ""
    # older versions of typer keep the type here, newer ones the annotation there
    kind = getattr(parameter, "type", None) or parameter.type_descriptor.annotation
    name = str(kind.__name__ if inspect.isclass(kind) else getattr(kind, "name", "text")).upper()
    return parameter.metavar or {"STR": "TEXT", "INT": "INTEGER", "FLOAT": "NUMBER"}.get(name, name)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value == () or value == [] or callable(value):
        return ""
    if parameter.param_type_name == "option" and parameter.is_flag:
        return "yes" if value and parameter.secondary_opts else ""
    return f"`{getattr(value, 'value', value)}`"


def markdown(name: str, command: Any) -> str:
    """Heading, help and a table of the options of one command."""
    shown = [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
    arguments = [_names(p).strip("`") for p in shown if p.param_type_name == "argument"]
    rows = [
        f"| {_names(p)} | {_default(p)} | {' '.join(_plain(p.help or '').split())} |"
        for p in sorted(shown, key=lambda p: p.param_type_name)
    ]
    usage = " ".join([name, *arguments, "[OPTIONS]" if len(shown) > len(arguments) else ""]).strip()
    table = ["| | default | |", "| --- | --- | --- |", *rows] if rows else []
    head = [f"({name.replace(' ', '-')})=", f"## {name}", "", _plain(command.help or ""), ""]
    return "\n".join([*head, "```text", usage, "```", "", *table, ""])


class Commands(SphinxDirective):
    """All commands, one section each."""

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        self.env.note_reread()
        text = "\n".join(markdown(name, command) for name, command in commands(program()))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("nimbus-commands", Commands)
    return {"parallel_read_safe": True}
