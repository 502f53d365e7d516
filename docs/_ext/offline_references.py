"""References that neither the pages nor the inventories of other projects resolve under the name they have.

Annotations name things where they are defined (``anndata._core.anndata.AnnData``), documentation names them
where users import them (``anndata.AnnData``): this looks for the second name. Names of other packages that
no inventory has, all of them on a machine without network, become plain text if they can be imported; a name
that is nowhere stays a warning, and the build fails.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.intersphinx import missing_reference


@cache
def thing(name: str) -> Any:
    """What a dotted name stands for; raises LookupError."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:end]))
        except ImportError:
            continue
        try:
            for part in parts[end:]:
                found = getattr(found, part)
        except AttributeError:
            continue
        return found
    raise LookupError(name)


def shortest_name(name: str) -> str:
    """Where users import it: the shortest prefix of the module's name that has the same thing."""
    found = thing(name)
    last = name.rpartition(".")[2]
    parts = name.split(".")
    for end in range(1, len(parts)):
        shorter = ".".join([*parts[:end], last])
        try:
            if thing(shorter) is found:
                return shorter
        except LookupError:
            continue
    return name


def house_names(env: BuildEnvironment) -> dict[str, str]:
    """Name of the definition, and bare name, to the name under which a page describes it."""
    names: dict[str, str] = {}
    for documented in env.get_domain("py").objects:  # type: ignore[attr-defined]
        if not documented.startswith("nimbus_sd."):
            continue
        found = thing(documented)
        defined = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
        names[defined] = documented
        if isinstance(found, type):
            names[documented.rpartition(".")[2]] = documented
    return names


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Resolve by the other name, else give the text; None lets Sphinx warn."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].strip()
    if not hasattr(env, "nimbus_house_names"):
        env.nimbus_house_names = house_names(env)  # type: ignore[attr-defined]
    documented = env.nimbus_house_names.get(target)  # type: ignore[attr-defined]
    if documented:
        domain = env.get_domain("py")
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", documented, node, contnode)
    root = target.partition(".")[0]
    if root not in app.config.nimbus_other_packages and root not in sys.stdlib_module_names:
        return None
    try:
        other = shortest_name(target)
    except LookupError:
        return None
    renamed = node.deepcopy()
    renamed["reftarget"], renamed["reftype"] = other, "obj"
    return missing_reference(app, env, renamed, contnode) or contnode


def _forget(app: Sphinx, env: BuildEnvironment) -> None:
    vars(env).pop("nimbus_house_names", None)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx, behind intersphinx."""
    app.add_config_value("nimbus_other_packages", [], "env")
    app.connect("env-updated", lambda app, env: _forget(app, env) or [])
    app.connect("missing-reference", resolve, priority=700)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
