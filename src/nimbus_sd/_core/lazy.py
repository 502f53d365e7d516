"""Public rooms whose members are imported on first use, and optional extras."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from nimbus_sd._core.errors import MissingExtraError


def lazy_exports(
    package: str, members: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build ``__getattr__`` and ``__dir__`` for a package.

    Parameters
    ----------
    package
        The package's ``__name__``.
    members
        Public name to the submodule (relative to the package) that defines it; a name that is
        its own submodule hands on the submodule.
    """

    def __getattr__(name: str) -> Any:
        if name in members:
            module = import_module(f"{package}.{members[name]}")
            return module if name == members[name] else getattr(module, name)
        msg = f"module {package!r} has no attribute {name!r}; valid: {', '.join(sorted(members))}"
        raise AttributeError(msg)

    def __dir__() -> list[str]:
        return sorted(members)

    return __getattr__, __dir__


def require(module: str, *, extra: str) -> Any:
    """Import an optional dependency or say which extra brings it.

    Raises
    ------
    MissingExtraError
        If `module` is not installed; the message holds the install line.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        msg = (
            f"{module!r} is needed here and not installed. Install it with:\n"
            f'    pip install -c constraints.txt "nimbus-sd[{extra}]"'
        )
        raise MissingExtraError(msg) from error
