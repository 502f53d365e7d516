"""What ``nimbus-sd doctor`` gathers: rows to read, facts for programs, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import typer

_LABEL = 16  # characters of the first column


@dataclass
class Checkup:
    """Filled by probes, each of which may fail without keeping the others from running.

    Attributes
    ----------
    rows
        Section to lines of name and value.
    facts
        Section to values for ``--json``.
    problems
        What is wrong and what to do about it.
    notes
        What one may want to know.
    """

    rows: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def say(self, section: str, name: str, value: object, fact: object = None) -> None:
        """Add a line, and its value (or another `fact`) under the same name."""
        self.rows.setdefault(section, []).append((name, str(value)))
        self.facts.setdefault(section, {})[name] = value if fact is None else fact

    def wrong(self, what: str, do: str) -> None:
        """Add something that has to be mended."""
        self.problems.append((what, do))

    def note(self, text: str) -> None:
        """Add something worth knowing."""
        self.notes.append(text)

    def probe(self, section: str, name: str, do: str, look: Callable[[Checkup], None]) -> None:
        """Run a probe; whatever it raises is a finding."""
        try:
            look(self)
        except Exception as error:  # noqa: BLE001 - a broken installation raises anything
            said = " ".join(f"{type(error).__name__}: {error}".split())
            self.say(section, name, f"fails: {said[:300]}")
            self.wrong(f"{section}, {name}: {said[:300]}", do)

    def lines(self) -> list[str]:
        """Everything, aligned, for a terminal."""
        out = []
        for section, rows in self.rows.items():
            out.append(typer.style(section, bold=True))
            out += (f"  {name:<{_LABEL}}  {value}" for name, value in rows)
            out.append("")
        if self.notes:
            out += [typer.style("good to know", bold=True), *(f"  - {note}" for note in self.notes), ""]
        if not self.problems:
            return [*out, typer.style("all well", fg="green", bold=True)]
        n = len(self.problems)
        title = f"{n} thing{'s are' if n > 1 else ' is'} wrong"
        out.append(typer.style(title, fg="red", bold=True))
        for i, (what, do) in enumerate(self.problems, start=1):
            out += [f"  {i}. {what}", f"     {do}"]
        return out

    def to_dict(self) -> dict[str, Any]:
        """The same for ``--json``."""
        wrong = [{"what": what, "do": do} for what, do in self.problems]
        return {"ok": not wrong, "problems": wrong, "notes": self.notes, **self.facts}
