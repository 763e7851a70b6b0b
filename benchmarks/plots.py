"""Plots of the results as SVG, with the same bytes for the same results; see run.py --plot."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from measure import Curve, Figure
from report import Results, number

mpl.use("svg")

from matplotlib import pyplot

GROWTH: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "log-length": (("catch-up by log length",), ("memory by log length",)),
    "sessions": (("catch-up by sessions",), ("memory by sessions",)),
    "messages": (
        ("append by messages",),
        ("bytes written by messages, one at a time", "bytes written by messages, under load"),
    ),
    "projections": (("catch-up by projections",),),
    "writers": (("events written by writers",), ("writer p99 by writers",), ("lag by writers",)),
}
"""Each file, its panels, and the curves in each panel."""
COMPARED: Final = (
    ("W1: ", "W1, 1,000 sessions × 20 events: events/s, more is better"),
    ("W2: ", "W2, 5 sessions × 2,000 messages of 1 KB: events/s, more is better"),
    ("commit → visible: p50", "commit → visible, p50: ms, less is better"),
    ("commit → visible: p99", "commit → visible, p99: ms, less is better"),
    ("idle: processor", "idle: % of a processor, less is better"),
)
"""The prefix of a panel's figure names, and its title."""
OURS: Final = "#0b6e99"
OTHERS: Final = "#8a8f98"
FLOOR: Final = "#c9a227"


def draw(results: Results, folder: Path) -> None:
    """Draw one file for each group of curves and one for the peers, as far as results exist."""
    folder.mkdir(parents=True, exist_ok=True)
    style = {
        "svg.hashsalt": "projector",
        "svg.fonttype": "none",
        "figure.facecolor": "white",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    curves = {curve.name: curve for curve in results.curves}
    with mpl.rc_context(style):
        for name, panels in GROWTH.items():
            found = [[curves[one] for one in panel if one in curves] for panel in panels]
            if all(found):
                _save(_grown(found), folder / f"{name}.svg")
        panels = [(title, _reached(results.figures, begin)) for begin, title in COMPARED]
        if all(len(found) > 1 and "projector" in dict(found) for _, found in panels):
            _save(_compared(panels), folder / "peers.svg")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _grown(panels: Sequence[Sequence[Curve]]) -> Any:
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3), layout="constrained", squeeze=False
    )
    for axis, curves in zip(axes[0], panels, strict=True):
        for curve, color in zip(curves, (OURS, FLOOR), strict=False):
            _line(axis, curve, color, named=len(curves) > 1)
        axis.set_title(curves[0].y, loc="left", fontsize=9)
        axis.set_xlabel(curves[0].x)
        axis.grid(axis="y", color="#e3e5e8", linewidth=0.6)
        axis.yaxis.set_major_formatter(lambda value, _: number(value))
        axis.xaxis.set_major_formatter(lambda value, _: number(value))
        axis.set_ylim(bottom=0, top=1.1 * axis.get_ylim()[1])
        if len(curves) > 1:
            axis.legend(frameon=False)
    return figure


def _line(axis: Any, curve: Curve, color: str, *, named: bool) -> None:
    """Draw the medians as a line, and minimum to maximum as a shaded area."""
    xs = [x for x, _ in curve.points]
    label = curve.name.rpartition(", ")[2] if named else None
    middle = [statistics.median(values) for _, values in curve.points]
    low, high = ([end(values) for _, values in curve.points] for end in (min, max))
    axis.plot(xs, middle, color=color, marker="o", markersize=4, linewidth=1.6, label=label)
    axis.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
    if max(xs) >= 10 * min(xs):
        axis.set_xscale("log")
    else:
        axis.set_xticks(xs)


def _reached(figures: Sequence[Figure], begin: str) -> list[tuple[str, float]]:
    """Return names and medians of the figures with the prefix: floor, projector, peers."""
    found = [
        (figure.name.removeprefix(begin).removeprefix(": ") or "projector", figure.median)
        for figure in figures
        if figure.name.startswith(begin) and figure.values
    ]
    return sorted(found, key=lambda one: (not one[0].startswith("floor"), one[0] != "projector"))


def _ratio(value: float, ours: float) -> str:
    factor = max(value / ours, ours / value)
    said = f"{factor:.1f}" if factor < 10 else f"{factor:.0f}"
    return f"× {said}" if value >= ours else f"1/{said}"


def _compared(panels: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Any:
    """Draw dots on logarithmic scales, which alone can show projector and the peers together."""
    rows = [len(found) + 1.2 for _, found in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(7.5, 0.27 * sum(rows)),
        layout="constrained",
        height_ratios=rows,
    )
    for axis, (title, found) in zip(axes, panels, strict=True):
        ours = dict(found)["projector"]
        for row, (name, value) in enumerate(found):
            color = OURS if name == "projector" else FLOOR if "floor" in name else OTHERS
            axis.plot([value], [row], color=color, marker="o", markersize=7)
            said = number(value) + ("" if name == "projector" else f" ({_ratio(value, ours)})")
            axis.annotate(said, (value, row), (8, 0), textcoords="offset points", va="center")
        axis.set_yticks(range(len(found)), [name for name, _ in found])
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.set_xscale("log")
        values = [value for _, value in found]
        axis.set_xlim(min(values) / 1.5, max(values) * (max(values) / min(values)) ** 0.3 * 1.5)
        axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
        axis.grid(axis="y", color="#e3e5e8", linewidth=0.6)
        axis.tick_params(axis="both", length=0)
        axis.set_xticks([], minor=True)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
    figure.supxlabel("logarithmic scales; in brackets, against projector", fontsize=8)
    return figure
