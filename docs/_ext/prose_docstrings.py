"""Numpydoc sections, as this package writes them, to the fields that Sphinx lays out.

Its docstrings give no types (the annotations do), and say in sentences what comes back. Napoleon reads each
line of such a paragraph as the type of one more result, so the few sections there are get read here.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator, Set
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from sphinx.application import Sphinx

TITLES = (
    "Parameters",
    "Attributes",
    "Returns",
    "Yields",
    "Raises",
    "Warns",
    "See Also",
    "Notes",
    "References",
    "Examples",
)


def sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Title and body of each section; what stands before the first has the title ``""``."""
    title, body = "", []
    position = 0
    while position < len(lines):
        following = lines[position + 1] if position + 1 < len(lines) else ""
        if lines[position] in TITLES and re.fullmatch("-{3,}", following):
            yield title, body
            title, body = lines[position], []
            position += 2
        else:
            body.append(lines[position])
            position += 1
    yield title, body


def entries(body: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Names on a line of their own, and the indented text below them."""
    names: list[str] = []
    text: list[str] = []
    for line in body:
        if line and not line.startswith(" "):
            if names:
                yield names, _trimmed(text)
            names, text = [n.strip(" *") for n in line.split(" : ")[0].split(",")], []
        else:
            text.append(line)
    if names:
        yield names, _trimmed(text)


def _trimmed(text: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(text)).strip("\n").splitlines()


def _field(name: str, text: list[str]) -> list[str]:
    return [f":{name}: {text[0] if text else ''}".rstrip(), *(f"    {t}".rstrip() for t in text[1:])]


def _fields(kind: str, names: list[str], text: list[str]) -> list[str]:
    """One field for each name, since each has a type of its own; the text of several stands at the first."""
    first, *others = names
    if kind == "raises" or not others:
        return [line for name in names for line in _field(f"{kind} {name}", text)]
    also = ", ".join(f"`{name}`" for name in others)
    out = _field(f"{kind} {first}", [f"(and {also})", *text])
    return out + [line for name in others for line in _field(f"{kind} {name}", [f"See `{first}`."])]


def _listed(title: str, body: list[str]) -> list[str]:
    """One field with one entry of a list for each name."""
    out = []
    for names, text in entries(body):
        head, *rest = text or [""]
        out += [f"- **{', '.join(names)}**: {head}".rstrip(": "), *(f"  {t}".rstrip() for t in rest)]
    return [f":{title}:", *(f"    {line}".rstrip() for line in out)]


def _seen_also(body: list[str]) -> list[str]:
    pairs = (line.partition(" : ") for line in _trimmed(body))
    return [f"- :obj:`{name}`: {text}" for name, _, text in pairs if name]


def _attributes(body: list[str], arguments: Set[str]) -> list[str]:
    """Fields of a dataclass are its parameters; what is not is listed."""
    out, others = [], []
    for names, text in entries(body):
        if arguments >= set(names):
            out += _fields("param", names, text)
        else:
            others += [", ".join(names), *(f"    {t}" for t in text)]
    return out + (_listed("Attributes", others) if others else [])


def convert(lines: list[str], arguments: Set[str] = frozenset()) -> list[str]:
    """Lines of a docstring as reStructuredText."""
    out: list[str] = []
    fields: list[str] = []
    after: list[str] = []
    for title, body in sections(lines):
        if not title:
            out += body
        elif title in ("Parameters", "Raises"):
            kind = "param" if title == "Parameters" else "raises"
            for names, text in entries(body):
                fields += _fields(kind, names, text)
        elif title == "Attributes":
            # where a class lists its parameters, its attributes are something else
            told = any(found == "Parameters" for found, _ in sections(lines))
            fields += _attributes(body, set() if told else arguments)
        elif title in ("Returns", "Yields"):
            fields += _field("returns", _trimmed(body))
        elif title == "Warns":
            fields += _listed(title, body)
        elif title == "See Also":
            after += [".. rubric:: See also", "", *_seen_also(body), ""]
        else:
            after += [f".. rubric:: {title}", "", *_trimmed(body), ""]
    return [*out, "", *fields, "", *after]


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    arguments = set(inspect.signature(obj).parameters) if what == "class" else set()
    lines[:] = convert(lines, arguments)


def _without_none(app: Sphinx, domain: str, kind: str, node: Any) -> None:
    """Leave out the type of what comes back where nothing does: the text says what is written instead."""
    from docutils import nodes

    for fields in node.findall(nodes.field_list):
        for field in list(fields):
            name, body = (child.astext() for child in field.children)
            if name == "rtype" and body == "None":
                fields.remove(field)


def _know_annotations(app: Sphinx) -> None:
    """Let every annotation be the type that it names."""
    package = import_module("nimbus_sd")
    modules = [import_module(m.name) for m in pkgutil.walk_packages(package.__path__, "nimbus_sd.")]
    _import_what_type_checkers_see(modules)
    for module in modules:
        for value in list(vars(module).values()):
            if inspect.isclass(value) and "__init__" in vars(value) and value.__module__ == module.__name__:
                # of classes, Sphinx reads annotations as they are written; a name that is nowhere stays
                with suppress(NameError):
                    value.__init__.__annotations__ = get_type_hints(value.__init__)


def _import_what_type_checkers_see(modules: list[ModuleType]) -> None:
    for module in modules:
        for node in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                code = compile(ast.Module(node.body, []), str(module.__file__), "exec")
                exec(code, vars(module))  # noqa: S102


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", _know_annotations, priority=100)
    app.connect("autodoc-process-docstring", _docstring)
    # behind autodoc, which adds the types
    app.connect("object-description-transform", _without_none, priority=900)
    return {"parallel_read_safe": True}
