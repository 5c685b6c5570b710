"""What results look like in a notebook and on a terminal: a table, and a drawing with the report's colours."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Drawing:
    """A figure that a notebook shows as a picture; `save` writes it to a file.

    Attributes:
        figure: The `matplotlib.figure.Figure`, to go on drawing on.
    """

    def __init__(self, figure: Any) -> None:
        self.figure = figure

    def save(self, path: str | Path) -> Path:
        """Writes the picture; the suffix says how: `.png`, `.svg`, `.pdf`.

        Args:
            path: Where to.

        Returns:
            The path.
        """
        self.figure.savefig(path)
        return Path(path)

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.figure.savefig(out, format="png", dpi=110)
        return out.getvalue()


def draw(paint: Callable[[Any], None], size: tuple[float, float]) -> Drawing:
    """Makes a drawing in the colours of the report; matplotlib is imported here, pyplot is not.

    Args:
        paint: Draws on the axes it is given.
        size: Width and height, inches.

    Returns:
        The drawing.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from edgewise.service.report.plots import LIGHT, style

    settings: Any = {**style(LIGHT), "figure.facecolor": LIGHT.card}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
    return Drawing(figure)


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligns cells in columns.

    Args:
        columns: Headings.
        rows: Cells; numbers stand right.

    Returns:
        Lines.

    Example:
        >>> print(text_table(["round", "by"], [[1, "edge"], [10, "cloud"]]))
        round  by
            1  edge
           10  cloud
    """
    cells = [list(columns), *([cell_text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    lines = (
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def html_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], below: str = "") -> str:
    """The same for a notebook.

    Args:
        columns: Headings.
        rows: Cells.
        below: A sentence under it.

    Returns:
        HTML; what is in cells is escaped.
    """
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell_text(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{html.escape(below)}</p>"


def cell_text(value: Any) -> str:
    """A cell as text: numbers with four digits, what is not known as a dash."""
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return str(value)
