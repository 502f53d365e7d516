"""What the shell offers behind an option; nothing heavy is imported, so that Tab answers at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.resources import files


def model_names(incomplete: str) -> Iterator[tuple[str, str]]:
    """Registered models that begin so, with their pixel size."""
    bundled = files("nimbus_sd.models") / "weights"
    known = {}
    for folder in sorted(bundled.iterdir(), key=lambda f: f.name):
        card = folder / "card.json"
        if card.is_file():
            values = json.loads(card.read_text(encoding="utf-8"))
            known[values["name"]] = f"{values['mpp']:g} µm/px, bundled"
    known["nimbus-v1"] = "1 µm/px, downloaded on first use"
    yield from ((name, told) for name, told in known.items() if name.startswith(incomplete))


def one_of(*names: str) -> Callable[[str], list[str]]:
    """A completion that offers these names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete
