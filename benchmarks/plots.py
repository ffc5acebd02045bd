"""Plots as SVG text: bars, and lines over a logarithmic axis. They need no library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 760
_LEFT, _RIGHT, _TOP, _ROW = 200, 110, 46, 26


def bars(title: str, values: Mapping[str, tuple[float, str]], colours: Mapping[str, str]) -> str:
    """Return horizontal bars: by name a length and its label, all on one linear scale."""
    longest = max((length for length, _ in values.values()), default=1.0) or 1.0
    scale = (WIDTH - _LEFT - _RIGHT) / longest
    parts = []
    for index, (name, (length, label)) in enumerate(values.items()):
        top = _TOP + index * _ROW
        width = max(1.0, length * scale)
        parts += [
            _text(_LEFT - 8, top + 15, name, anchor="end"),
            _box(_LEFT, top, width, _ROW - 6, colours[name]),
            _text(_LEFT + width + 6, top + 15, label),
        ]
    return _picture(title, _TOP + len(values) * _ROW + 10, parts)


def lines(
    title: str,
    across: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    colours: Mapping[str, str],
) -> str:
    """Return lines over named points, on a logarithmic scale; None leaves a point out."""
    known = [value for values in series.values() for value in values if value]
    low = 10 ** math.floor(math.log10(min(known, default=1.0)))
    high = 10 ** math.ceil(math.log10(max(known, default=10.0)) + 1e-9)
    height, left, right = 300, 100, 230
    step = (WIDTH - left - right) / max(1, len(across) - 1)

    def y_of(value: float) -> float:
        share = (math.log10(value) - math.log10(low)) / (math.log10(high) - math.log10(low))
        return height - 40 - share * (height - 40 - _TOP)

    parts = []
    tick = low
    while tick <= high * 1.001:
        y = y_of(tick)
        parts += [
            f'<line x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            _text(left - 8, y + 4, f"{tick:,.0f}" if tick >= 1 else f"{tick:g}", anchor="end"),
        ]
        tick *= 10
    for index, name in enumerate(across):
        parts.append(_text(left + index * step, height - 18, name, anchor="middle"))
    for index, (name, values) in enumerate(series.items()):
        colour = colours[name]
        points = [(left + place * step, y_of(value)) for place, value in enumerate(values) if value]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        row = _TOP + 10 + index * 20
        parts += [
            _box(WIDTH - right + 20, row - 9, 12, 10, colour),
            _text(WIDTH - right + 38, row, name),
        ]
    return _picture(title, height, parts)


def _picture(title: str, height: float, parts: Sequence[str]) -> str:
    inside = "\n".join((_text(12, 24, title, size=15), *parts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" font-family="sans-serif" role="img">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{inside}\n</svg>\n'
    )


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#222">'
        f"{escape(text)}</text>"
    )
