"""``{recorded} NAME``: what a benchmark printed, as ``benchmarks/record.py`` kept it.

Aligned columns become tables, other lines stay text. ``:only:`` takes a regular expression and shows only
blocks with a line that it finds.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx.application import Sphinx

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
GAP = 2


def read(name: str) -> tuple[dict[str, str], list[list[str]]]:
    """Facts about a run, and the blocks of lines that it printed."""
    text = (RESULTS / f"{name}.txt").read_text("utf-8")
    head, _, body = text.partition("\n\n")
    about = dict(line.removeprefix("# ").split(": ", 1) for line in head.splitlines())
    return about, [block.splitlines() for block in re.split(r"\n{2,}", body.strip("\n"))]


def cells(lines: list[str]) -> list[list[str]] | None:
    """Split aligned lines where all of them have two blanks or more; None where they never do."""
    width = max(map(len, lines))
    # a column is blank where it is blank in every line
    seen = "".join("x" if any(line[i : i + 1].strip() for line in lines) else " " for i in range(width))
    bounds = [found.span() for found in re.finditer(r"x(?:x| (?! ))*", seen)]
    if len(bounds) < GAP:
        return None
    rows = [[line[a:b].strip() for a, b in bounds] for line in lines]
    if len(rows) > GAP and not any(rows[1][1:]):  # pandas puts the name of its index into a line of its own
        rows[0][0] = rows.pop(1)[0]
    return rows if all(rows[0][1:]) else None


def pieces(block: list[str]) -> list[str | list[list[str]]]:
    """A block's tables, and the lines around them: where columns and rows that align are most, a table is."""
    best, where = None, (0, 0)
    for first, last in itertools.combinations(range(len(block) + 1), 2):
        table = cells(block[first:last]) if last - first >= GAP else None
        if table and (best is None or _size(table) > _size(best)):
            best, where = table, (first, last)
    if best is None:
        return list(block)
    return [*pieces(block[: where[0]]), best, *pieces(block[where[1] :])]


def _size(table: list[list[str]]) -> int:
    return len(table) * (len(table[0]) - 1) ** 2


class Recorded(Directive):
    """The directive."""

    required_arguments = 1
    option_spec = {"only": directives.unchanged}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Give the paragraph that says what ran, and its output."""
        name = self.arguments[0]
        path = RESULTS / f"{name}.txt"
        if not path.is_file():
            msg = f"no record of {name}: python benchmarks/record.py {name}"
            raise self.error(msg)
        if (env := getattr(self.state.document.settings, "env", None)) is not None:
            env.note_dependency(str(path))
        about, blocks = read(name)
        if only := self.options.get("only"):
            blocks = [b for b in blocks if any(re.search(only, line) for line in b)]
            if not blocks:
                msg = f"the record of {name} has no block with {only!r}"
                raise self.error(msg)
        head = nodes.paragraph(classes=["recorded"])
        head += nodes.literal(text=about["command"])
        said = ", ".join(f"{about[k]}" for k in ("date", "took", "note") if k in about)
        head += nodes.inline(text=f" — {said}, commit {about['commit']}, {about['machine']}")
        return [head, *itertools.chain.from_iterable(map(_nodes, blocks))]


def _nodes(block: list[str]) -> list[nodes.Node]:
    out: list[nodes.Node] = []
    for piece in pieces(block):
        if isinstance(piece, str):
            out.append(nodes.paragraph(text=piece.strip(), classes=["recorded-line"]))
        else:
            out.append(_table(piece))
    return out


def _table(rows: list[list[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(rows[0]))
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    head, body = nodes.thead(), nodes.tbody()
    for part, lines in ((head, rows[:1]), (body, rows[1:])):
        for line in lines:
            row = nodes.row()
            for text in line:
                entry = nodes.entry()
                entry += nodes.paragraph(text=text)
                row += entry
            part += row
    group += [head, body]
    table = nodes.table(classes=["recorded"])
    table += group
    return table


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("recorded", Recorded)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
