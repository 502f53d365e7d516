"""What training configurations have in common: presets by name, and plain values back and forth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd.engine.training.config_checks import check_keys, plain


class Presets:
    """Base of frozen dataclasses that name presets.

    Attributes
    ----------
    PRESETS
        Names of class methods without arguments.
    PARTS
        Fields that are configurations themselves, and their classes.
    """

    PRESETS: ClassVar[tuple[str, ...]] = ()
    PARTS: ClassVar[Mapping[str, type]] = {}

    @classmethod
    def preset(cls, name: str) -> Self:
        """Return the preset of a name.

        Raises
        ------
        InputError
            If there is none of this name.
        """
        if name not in cls.PRESETS:
            own = cls.__name__
            msg = (
                f"config={name!r} is no preset; valid: {', '.join(cls.PRESETS)}, or a configuration, for "
                f"instance dataclasses.replace({own}.{cls.PRESETS[0]}(), seed=1)"
            )
            raise InputError(msg)
        found: Self = getattr(cls, name)()
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, lists and dicts, as JSON and TOML can hold them."""
        own: Any = self
        mappings = {k: dict(v) for k, v in vars(self).items() if isinstance(v, Mapping)}
        return {k: plain(v) for k, v in asdict(replace(own, **mappings)).items()}

    def write(self, path: Path) -> None:
        """Write as JSON; a reader sees the whole file or the old one."""
        with whole_file(path) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; what is left out keeps its default, or that of ``"preset"``.

        Raises
        ------
        InputError
            If a key is unknown or a value invalid.
        """
        values = dict(values)
        base: Any = cls.preset(values.pop("preset")) if "preset" in values else cls()
        for name, kind in cls.PARTS.items():
            if name in values:
                given = values[name]
                check_keys(kind, given, f"[{name}]")
                values[name] = replace(getattr(base, name), **given)
        check_keys(cls, values, "the configuration")
        found: Self = replace(base, **values)
        return found
