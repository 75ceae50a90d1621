"""CSV that a spreadsheet opens without running anything (RFC 4180, cells made harmless).

Knows cells. Does not know what they mean.
"""

import csv
import io
from collections.abc import Iterable, Sequence

CONTENT_TYPE = "text/csv; charset=utf-8"

# A spreadsheet takes a cell that starts with one of these for a formula (OWASP, CSV injection).
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_csv(header: Sequence[str], rows: Iterable[Sequence[str | int]]) -> str:
    """The table as text with CRLF line ends.

    Integers are written as they are; text that a spreadsheet could take for a formula gets a
    leading apostrophe. Amounts of money arrive as exact decimal text and stay numbers.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_MINIMAL, lineterminator="\r\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_harmless(cell) for cell in row])
    return out.getvalue()


def _harmless(cell: str | int) -> str | int:
    if isinstance(cell, int) or not _looks_like_formula(cell):
        return cell
    return "'" + cell


def _looks_like_formula(text: str) -> bool:
    if not text.lstrip(" ").startswith(_FORMULA_STARTS):
        return False
    digits = text[1:] if text[0] == "-" else text
    # A plain negative amount is a number to a spreadsheet, not a formula.
    return not (digits.isascii() and digits.replace(".", "", 1).isdigit())
