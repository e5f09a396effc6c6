"""Tables that print: through rich where it is installed (colours by `rich.print`), as plain columns elsewhere."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under column names; `wrong` names the (row, column) cells that deserve a look."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wrong: frozenset[tuple[int, int]] = frozenset()
    caption: str = ""

    def text(self) -> str:
        """The table as plain text; a cell to look at has an exclamation mark."""
        marked = [
            tuple(f"! {cell}" if (i, j) in self.wrong else cell for j, cell in enumerate(row))
            for i, row in enumerate(self.rows)
        ]
        widths = [max(map(len, column)) for column in zip(self.columns, *marked, strict=True)]
        lines = [self.title, "  ".join(name.ljust(w) for name, w in zip(self.columns, widths, strict=True)).rstrip()]
        lines.append("  ".join("-" * w for w in widths))
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in marked]
        return "\n".join([*lines, *([self.caption] if self.caption else [])])

    def rich(self) -> Any:
        """The table for rich: what `__rich__` of its owner returns."""
        import rich.table  # noqa: PLC0415 - in the `experiments` extra; without it nobody asks for this

        drawn = rich.table.Table(title=self.title, caption=self.caption, title_justify="left", caption_justify="left")
        for name in self.columns:
            drawn.add_column(name, no_wrap=True)
        for i, row in enumerate(self.rows):
            cells = [f"[bold red]{cell}[/]" if (i, j) in self.wrong else cell for j, cell in enumerate(row)]
            drawn.add_row(*cells)
        return drawn
