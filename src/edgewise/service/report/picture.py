"""One PNG of a run for a README: learning above, the loop's timeline below, in the page's light colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise.service.report import plots
from edgewise.service.report.schema import Report


def write_picture(report: Report, path: Path | str, *, dpi: int = 110) -> Path:
    """Draws learning and the loop's timeline into one PNG.

    Args:
        report: What to draw.
        path: Where to; its folder is made.
        dpi: Pixels per inch; the picture is 10 x 9.6 inches.

    Returns:
        The path.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    settings: Any = {**plots.style(plots.LIGHT), "figure.facecolor": plots.LIGHT.card}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(10, 9.6), layout="constrained")
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 2))
        plots.draw_learning(parts[0], report, plots.LIGHT)
        plots.draw_timeline(parts[1], report, plots.LIGHT)
        figure.savefig(path, dpi=dpi, metadata={"Software": None})
    return path
