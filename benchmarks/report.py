"""The results as a table, for a terminal or for a page."""

import statistics

import msgspec
from measure import Curve, Figure


class Results(msgspec.Struct):
    """The results of one run, as `--json` writes them."""

    machine: dict[str, str]
    figures: list[Figure]
    curves: list[Curve]


HEADER = ("figure", "target", "reached", "min–max", "")


def number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}".rstrip("0").rstrip(".") if value >= 0.1 or not value else f"{value:.2g}"


def cells(figure: Figure) -> tuple[str, ...]:
    sign = "≥" if figure.better == "more" else "≤"
    target = "" if figure.target is None else f"{sign} {number(figure.target)} {figure.unit}"
    if not figure.values:
        return figure.name, target, "not measured", "", ""
    spread = f"{number(min(figure.values))}–{number(max(figure.values))}"
    met = {None: "", True: "met", False: "missed"}[figure.met]
    return figure.name, target, f"{number(figure.median)} {figure.unit}", spread, met


def line(figure: Figure) -> str:
    return "  ".join(cell for cell in cells(figure) if cell)


def points(curve: Curve) -> str:
    """Format a curve in one line, with its medians."""
    said = (f"{x:,.0f}: {number(statistics.median(values))}" for x, values in curve.points)
    return f"{curve.name} ({curve.y}): {', '.join(said)}"


def plain(results: Results) -> str:
    rows = [HEADER, *map(cells, results.figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    curves = map(points, results.curves)
    return "\n".join([*(row.rstrip() for row in padded), "", *curves, "", _machine(results)])


def markdown(results: Results) -> str:
    rows = [HEADER, ("---", "--:", "--:", "--:", "---"), *map(cells, results.figures)]
    table = ["| " + " | ".join(row) + " |" for row in rows]
    curves = [f"- {points(curve)}" for curve in results.curves]
    return "\n".join([*table, "", *curves, "", _machine(results)])


def _machine(results: Results) -> str:
    return ", ".join(f"{what} {value}" for what, value in results.machine.items())
