"""Small SVG charts: a line chart, bars, and the colours and numbers of a heat map.

Plain strings, no dependency. Colours are CSS variables, so that a page can switch between light and
dark; :func:`standalone` makes a file of its own out of a chart. Every chart carries a title and a
description for those who cannot see it, and prints its numbers, so that no fact is colour alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 440  # user units: 13-unit text stays legible when a phone shows the chart at 75 percent

CHART_STYLE = """
.chart { --ink: #1c2733; --muted: #5b6875; --grid: #d9dfe6; --series: #0b5cad; --best: #0b5cad;
  --other: #8fa3b5; --warn: #b34700; --whisker: #1c2733; --paper: #ffffff; }
@media (prefers-color-scheme: dark) {
  .chart { --ink: #e8edf2; --muted: #a3b0bd; --grid: #34404c; --series: #6db3f2; --best: #6db3f2;
    --other: #60707f; --warn: #ff9d5c; --whisker: #e8edf2; --paper: #18212b; }
}
.chart text { font: 13px system-ui, sans-serif; fill: var(--muted); }
.chart text.strong { fill: var(--ink); font-weight: 600; }
.chart text.warn { fill: var(--warn); font-weight: 600; }
.chart .grid { stroke: var(--grid); stroke-width: 1; }
.chart .series { fill: none; stroke: var(--series); stroke-width: 2.5; stroke-linejoin: round; }
.chart .faint { fill: none; stroke: var(--series); stroke-width: 1; opacity: .35; }
.chart .warn-line { stroke: var(--warn); stroke-width: 1.5; stroke-dasharray: 6 4; }
.chart .bar { fill: var(--other); }
.chart .bar.best { fill: var(--best); }
.chart .whisker { stroke: var(--whisker); stroke-width: 1.5; }
.chart .dot { fill: var(--series); }
.chart .mark { stroke: var(--ink); stroke-width: 2; }
"""

# From hardly any difference to the tolerance: one hue, darker is more. Beyond it: vermilion, which
# stays apart from blue in every common kind of colour blindness.
_LOW, _HIGH = (234, 242, 251), (11, 79, 138)
FAILED_COLOUR = "#b34700"
EXACT_COLOUR = "#f7f9fb"
MISSING_COLOUR = "#e3e6ea"

_chart_ids = itertools.count(1)

# From data to chart units.
_Mapping = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """One bar: its value, and the smallest and largest of the repeats where there were several."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    highlight: bool = False
    note: str = ""


@dataclass(frozen=True)
class BarGroup:
    """Bars that share a scale and a unit."""

    name: str
    bars: Sequence[Bar]
    unit: str = "s"


def format_number(value: float) -> str:
    """Three significant digits, with thin notation for the very large and the very small."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.1e}"


def heat_colour(value: float, tolerance: float, floor: float) -> tuple[str, str]:
    """Background and text colour of a heat-map cell.

    Args:
        value: the difference; NaN, infinite and anything above ``tolerance`` count as failures.
        tolerance: the darkest blue stands for it.
        floor: the lightest blue stands for it and for everything below, on a logarithmic scale.
    """
    if not value <= tolerance:  # also true for NaN
        return FAILED_COLOUR, "#ffffff"
    if value <= 0:
        return EXACT_COLOUR, "#1c2733"
    span = math.log10(tolerance) - math.log10(floor)
    share = (math.log10(value) - math.log10(floor)) / span if span > 0 else 1.0
    share = min(1.0, max(0.0, share))
    mixed = [round(a + (b - a) * share) for a, b in zip(_LOW, _HIGH, strict=True)]
    ink = max(("#ffffff", 1.0), ("#1c2733", 0.02), key=lambda pair: _contrast(mixed, pair[1]))[0]
    return "#{:02x}{:02x}{:02x}".format(*mixed), ink


def _contrast(colour: Sequence[int], ink_luminance: float) -> float:
    """The contrast ratio that the web accessibility guidelines define."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    low, high = sorted((luminance, ink_luminance))
    return (high + 0.05) / (low + 0.05)


def heat_scale(tolerance: float, floor: float) -> str:
    """The legend of a heat map: colours from ``floor`` to ``tolerance``, and what lies beyond."""
    left, right, steps = 4.0, 340.0, 41
    cell = (right - left) / steps
    parts = []
    for step in range(steps):
        value = floor * (tolerance / floor) ** (step / (steps - 1))
        colour, _ = heat_colour(value, tolerance, floor)
        parts.append(_rect(left + step * cell, 8, cell + 0.5, 18, f'fill="{colour}"'))
    parts.append(_rect(right, 8, 92, 18, f'fill="{FAILED_COLOUR}"'))
    parts.append(_line(right, 4, right, 30, "mark"))
    low, high = math.ceil(math.log10(floor)), math.floor(math.log10(tolerance))
    for power in range(low, high + 1):
        x = left + (right - left) * (power - math.log10(floor)) / math.log10(tolerance / floor)
        if x < right - 80:  # room for the tolerance's own label
            parts.append(_text(x, 44, f"1e{power:+03d}", anchor="start" if x < 30 else "middle"))
    parts.append(_text(right, 44, f"tolerance {tolerance:.0e}", "strong", "middle"))
    parts.append(_text(right + 46, 22, "too large", anchor="middle", style="fill:#fff"))
    title = "Colour scale of the differences"
    desc = f"Logarithmic from {floor:.0e} to the tolerance {tolerance:.0e}; beyond it is a failure."
    return _svg(title, desc, 52, parts)


def line_chart(
    values: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str,
    baseline: tuple[str, float] | None = None,
    height: int = 300,
) -> str:
    """One series over its index, with a smoothed line, and a labelled baseline if there is one.

    Values that are not finite are left out of the line and counted in a warning.
    """
    points = [(i + 1, v) for i, v in enumerate(values) if math.isfinite(v)]
    lost = len(values) - len(points)
    known = [v for _, v in points] + ([baseline[1]] if baseline else [])
    ticks = _ticks(0.0, max(known, default=1.0))
    left, right, top, bottom = 52.0, WIDTH - 14.0, 22.0, height - 42.0
    last = max(len(values), 2)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (right - left) * (x - 1) / (last - 1),
            bottom - (bottom - top) * y / ticks[-1],
        )

    parts = _axes(ticks, at, (left, right, top, bottom), last)
    parts += [
        _text(left, 13, y_label),
        _text((left + right) / 2, height - 6, x_label, "", "middle"),
    ]
    if baseline:
        y = at(1, baseline[1])[1]
        label = f"{baseline[0]}: {format_number(baseline[1])}"
        parts += [_line(left, y, right, y, "warn-line"), _text(right, y + 16, label, "warn", "end")]
    if points:
        parts.append(_polyline((at(x, y) for x, y in _thin(points)), "faint"))
        parts.append(_polyline((at(x, y) for x, y in _thin(_smooth(points))), "series"))
        parts += _end_label(points[-1], at, right)
    if lost:
        parts.append(_text(right, 13, f"{lost} values are not finite", "warn", "end"))
    return _svg(title, _describe(points, lost, baseline, y_label), height, parts)


def bar_chart(groups: Sequence[BarGroup], *, title: str, desc: str = "") -> str:
    """Horizontal bars, one block per group, each block with a scale of its own.

    The value stands beside the bar; a whisker spans the smallest and largest repeat.
    """
    parts: list[str] = []
    y = 4.0
    for group in groups:
        if len(groups) > 1:
            y += 18
            parts.append(_text(4, y, group.name, "strong"))
            y += 8
        # Names as wide as the longest of the chart, so that all blocks line up.
        y = _bar_block(parts, group, y, _label_width(groups))
        y += 6
    spoken = "; ".join(
        f"{group.name}, {bar.label}: {format_number(bar.value)} {group.unit}"
        for group in groups
        for bar in group.bars
    )
    return _svg(title, f"{desc} {spoken}".strip(), math.ceil(y), parts)


def standalone(svg: str) -> str:
    """Make a file of its own out of a chart: namespace, style sheet and background."""
    head, rest = svg.split(">", 1)
    style = f'<style>{CHART_STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def _bar_block(parts: list[str], group: BarGroup, y: float, left: float) -> float:
    right = WIDTH - 118.0  # room for the number and its unit
    finite = [b.high or b.value for b in group.bars if math.isfinite(b.value)]
    scale = (right - left) / (max(finite, default=0.0) or 1.0)
    for bar in group.bars:
        middle = y + 12
        parts.append(
            _text(left - 8, middle + 5, bar.label, "strong" if bar.highlight else "", "end")
        )
        if not math.isfinite(bar.value):
            parts.append(_text(left + 4, middle + 5, bar.note or "no value", "warn"))
        else:
            length = max(bar.value * scale, 1.0)
            style = f'class="bar{" best" if bar.highlight else ""}" rx="2"'
            parts.append(_rect(left, y + 3, length, 18, style))
            end = left + length
            if bar.low is not None and bar.high is not None and bar.high > bar.low:
                parts.append(
                    _line(
                        left + bar.low * scale, middle, left + bar.high * scale, middle, "whisker"
                    )
                )
                end = max(end, left + bar.high * scale)
            label = f"{format_number(bar.value)} {group.unit}" + (
                f" {bar.note}" if bar.note else ""
            )
            parts.append(_text(end + 6, middle + 5, label, "strong" if bar.highlight else ""))
        y += 26
    return y


def _label_width(groups: Sequence[BarGroup]) -> float:
    longest = max((len(bar.label) for group in groups for bar in group.bars), default=0)
    return min(240.0, 7.2 * longest + 18)


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from ``low`` to at least ``high``."""
    span = (high - low) or 1.0
    raw = span / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    return [low + step * i for i in range(math.ceil(span / step - 1e-9) + 1)]


def _axes(
    ticks: Sequence[float], at: _Mapping, box: tuple[float, float, float, float], last: int
) -> list[str]:
    left, right, _, bottom = box
    parts = []
    for tick in ticks:
        y = at(1, tick)[1]
        parts.append(_line(left, y, right, y, "grid"))
        parts.append(_text(left - 8, y + 4, f"{tick:g}", anchor="end"))
    for tick in _ticks(0, last):
        step = max(1, round(tick))
        if step <= last:
            parts.append(_text(at(step, 0)[0], bottom + 18, f"{step:,}", anchor="middle"))
    return parts


def _end_label(point: tuple[int, float], at: _Mapping, right: float) -> list[str]:
    x, y = at(*point)
    dot = f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return [dot, _text(min(x, right) - 4, y - 10, format_number(point[1]), "strong", "end")]


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A running mean over about two percent of the points, to show the trend through the noise."""
    half = len(points) // 100
    out = []
    for i, (x, _) in enumerate(points):
        window = [v for _, v in points[max(0, i - half) : i + half + 1]]
        out.append((x, sum(window) / len(window)))
    return out


def _thin(points: Sequence[tuple[int, float]], most: int = 400) -> list[tuple[int, float]]:
    """Every n-th point and the last, so that a long run does not make a heavy page."""
    stride = -(-len(points) // most)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _describe(
    points: Sequence[tuple[int, float]],
    lost: int,
    baseline: tuple[str, float] | None,
    y_label: str,
) -> str:
    if not points:
        return "No finite values."
    text = f"{y_label} from {format_number(points[0][1])} to {format_number(points[-1][1])}"
    text += f" over {points[-1][0]} steps."
    if baseline:
        text += f" {baseline[0]}: {format_number(baseline[1])}."
    return text + (f" {lost} values are not finite." if lost else "")


def _svg(title: str, desc: str, height: float, parts: Iterable[str]) -> str:
    ident = f"chart{next(_chart_ids)}"
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {height:g}" '
        f'aria-labelledby="{ident}-title {ident}-desc">'
        f'<title id="{ident}-title">{escape(title)}</title>'
        f'<desc id="{ident}-desc">{escape(desc)}</desc>' + "".join(parts) + "</svg>"
    )


def _rect(x: float, y: float, width: float, height: float, attributes: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:g}" {attributes}/>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _polyline(points: Iterable[tuple[float, float]], css: str) -> str:
    return (
        f'<polyline class="{css}" points="'
        + " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        + '"/>'
    )


def _text(
    x: float, y: float, text: str, css: str = "", anchor: str = "start", style: str = ""
) -> str:
    extra = (f' class="{css}"' if css else "") + (f' style="{style}"' if style else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'
