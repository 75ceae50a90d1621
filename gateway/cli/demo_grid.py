"""A table without lines, whose columns give way where a terminal is narrow.

Knows widths. Does not know what stands in the cells.
"""

from collections.abc import Iterable

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

_GAP = 2


class Column(msgspec.Struct, frozen=True):
    """name: its heading. rank: the highest is left out first, 0 never. rest: takes what is left,
    ``width`` at least.
    """

    name: str
    width: int
    rank: int = 0
    right: bool = False
    rest: bool = False
    folds: bool = False  # a long text takes several lines, else it is cut


class Grid:
    """Columns that fit into a width, and rows for all of them."""

    def __init__(self, columns: Iterable[Column], width: int, *, heading: bool = True) -> None:
        self._all = tuple(columns)
        kept = list(self._all)
        while _needed(kept) > width and any(column.rank for column in kept):
            kept.remove(max(kept, key=lambda column: column.rank))
        room = max(0, width - _needed(kept))
        self._kept = [
            msgspec.structs.replace(column, width=column.width + room * column.rest)
            for column in kept
        ]
        self._names = {column.name for column in kept}
        self._table = Table(box=None, padding=(0, _GAP, 0, 0), show_header=heading)
        for column in self._kept:
            self._table.add_column(
                column.name,
                width=column.width,
                justify="right" if column.right else "left",
                overflow="fold",
            )

    def add(self, cells: Iterable[str], style: str | None = None) -> None:
        """Add a row: a cell for each column, whether it is shown or not."""
        shown = (
            cell
            for column, cell in zip(self._all, cells, strict=True)
            if column.name in self._names
        )
        self._table.add_row(
            *(
                Text(cell if column.folds else cut(cell, column.width))
                for column, cell in zip(self._kept, shown, strict=True)
            ),
            style=style,
        )

    def print(self, console: Console) -> None:
        """Print what was added."""
        console.print(self._table)


def cut(text: str, width: int) -> str:
    """Cut a text to a width, with an ellipsis where something is missing."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _needed(columns: list[Column]) -> int:
    return sum(column.width + _GAP for column in columns)
