"""Small figures as inline SVG: lines over time, stacked shares, bars, intervals. Pure; no text but titles for the ear.

Every figure stretches to the width of its box (``preserveAspectRatio="none"``), so that it is whole on a phone and on
paper. Text would be stretched with it: labels stand beside the figures as HTML. Colours come from classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape

WIDTH, HEIGHT = 1000, 200
MAX_LAYERS = 9
"""Classes ``k0`` to ``k8`` of stacked shares; what lies beyond belongs to the last."""


@dataclass(frozen=True, slots=True)
class Axis:
    """From ``low`` to ``high``; ``ticks`` are labels at equal distances, the highest value first."""

    low: float
    high: float
    ticks: tuple[str, ...]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end; nothing leaves the figure."""
        span = self.high - self.low
        return min(1.0, max(0.0, (value - self.low) / span)) if span > 0 else 0.0


def axis_to(maximum: float, show: Callable[[float], str]) -> Axis:
    """An axis from 0 to a round number at or above the maximum, with three labels."""
    high = _round_up(maximum)
    return Axis(0.0, high, (show(high), show(high / 2), "0"))


def axis_around(
    values: Sequence[float], show: Callable[[float], str], round_up: Callable[[float], float] | None = None
) -> Axis:
    """An axis of four round steps that holds all values; ``round_up`` says what is round."""
    low, high = min(values), max(values)
    round_up = round_up or _round_up
    step = round_up((high - low) / 4 if high > low else max(abs(high), 1.0) / 4)
    while True:
        start = math.floor(low / step + 1e-9) * step
        if start + 4 * step >= high - 1e-9 * step:
            return Axis(start, start + 4 * step, tuple(show(start + i * step) for i in (4, 3, 2, 1, 0)))
        step = round_up(step * 1.01)


def round_up_seconds(value: float) -> float:
    """The least round time that is not less: of seconds, minutes, hours or days."""
    return next((seconds for seconds in _ROUND_SECONDS if seconds >= value), math.ceil(value / 86_400) * 86_400.0)


_ROUND_SECONDS = (
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0),
    *(60.0 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600.0 * hours for hours in (1, 2, 3, 4, 6, 8, 12, 24)),
)


def _round_up(value: float) -> float:
    """The least of 1, 2, 4, 5, 8 times a power of ten that is not less."""
    if not (value > 0 and math.isfinite(value)):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 5, 8, 10, 20) if factor * power >= value * (1 - 1e-9))


def figure(title: str, description: str, shapes: Iterable[str], css: str = "plot") -> str:
    """An SVG element that says what it shows to those who cannot see it."""
    key = _key(title, description)
    return (
        f'<svg class="{css}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-labelledby="t{key} d{key}"><title id="t{key}">{escape(title)}</title>'
        f'<desc id="d{key}">{escape(description)}</desc>{"".join(shapes)}</svg>'
    )


def _key(*texts: str) -> str:
    """A name for an element that depends on its texts alone: equal reports are equal files."""
    return sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def grid(axis: Axis) -> str:
    """Level lines at the ticks."""
    last = len(axis.ticks) - 1
    return "".join(f'<path class="grid" d="M0 {_n(HEIGHT * i / last)}H{WIDTH}"/>' for i in range(last + 1))


def steps(values: Sequence[float | None], axis: Axis, css: str = "line", *, filled: bool = False) -> str:
    """Values of buckets of equal width; None leaves a gap."""
    pieces: list[list[tuple[int, float]]] = []
    for index, value in enumerate(values):
        if value is None:
            continue
        if not pieces or pieces[-1][-1][0] != index - 1:
            pieces.append([])
        pieces[-1].append((index, value))
    width = WIDTH / max(len(values), 1)
    shapes = []
    for piece in pieces:
        start = _n(piece[0][0] * width)
        path = "".join(f"V{_y(axis, value)}H{_n((index + 1) * width)}" for index, value in piece)
        if filled:
            shapes.append(f'<path class="{css}-fill" d="M{start} {HEIGHT}{path}V{HEIGHT}Z"/>')
        first = f"M{start} {_y(axis, piece[0][1])}"
        shapes.append(f'<path class="{css}" d="{first}{path}"/>')
    return "".join(shapes)


def layers(shares: Sequence[Sequence[float] | None]) -> str:
    """Shares that add up to 1 in each bucket, stacked from the bottom; None leaves a gap."""
    width = WIDTH / max(len(shares), 1)
    tops = [0.0] * len(shares)
    shapes = []
    for layer in range(max((len(bucket) for bucket in shares if bucket), default=0)):
        path = []
        for index, bucket in enumerate(shares):
            if not bucket or layer >= len(bucket) or bucket[layer] <= 0:
                continue
            top = min(1.0, tops[index] + bucket[layer])
            left, right = _n(index * width), _n((index + 1) * width)
            low, high = _n(HEIGHT * (1 - tops[index])), _n(HEIGHT * (1 - top))
            path.append(f"M{left} {low}V{high}H{right}V{low}Z")
            tops[index] = top
        if path:
            shapes.append(f'<path class="k{layer}" d="{"".join(path)}"/>')
    return "".join(shapes)


def hints(texts: Sequence[str]) -> str:
    """Invisible buckets that show a text under the pointer."""
    width = WIDTH / max(len(texts), 1)
    size = f'width="{_n(width)}" height="{HEIGHT}"'
    return "".join(
        f'<rect class="hint" x="{_n(i * width)}" {size}><title>{escape(text)}</title></rect>'
        for i, text in enumerate(texts)
    )


def marks(shares: Iterable[float], css: str) -> str:
    """Upright lines at these shares of the width."""
    return "".join(f'<path class="{css}" d="M{_n(WIDTH * share)} 0V{HEIGHT}"/>' for share in shares)


def points(values: Sequence[float | None], noises: Sequence[float], axis: Axis, flagged: frozenset[int]) -> str:
    """A value for each night with its interval, joined by a line; those flagged are drawn as larger hollow marks."""
    width = WIDTH / max(len(values), 1)
    places = [(index, value) for index, value in enumerate(values) if value is not None]
    path = " ".join(f"{_n((index + 0.5) * width)} {_y(axis, value)}" for index, value in places)
    shapes = [f'<path class="trend" d="M{path}"/>'] if len(places) > 1 else []
    for index, value in places:
        x, noise = _n((index + 0.5) * width), noises[index]
        if noise > 0:
            shapes.append(f'<path class="whisker" d="M{x} {_y(axis, value - noise)}V{_y(axis, value + noise)}"/>')
        css = "dot bad" if index in flagged else "dot"
        shapes.append(f'<path class="{css}" d="M{x} {_y(axis, value)}h0.01"/>')
    return "".join(shapes)


def interval(
    axis: Axis, low: float | None, high: float | None, value: float, rules: Iterable[tuple[float, str]]
) -> str:
    """A value with its interval along a level axis, and upright rules of some class at other values."""
    x = [_n(WIDTH * axis.place(number)) for number in (low or value, high or value, value)]
    shapes = [f'<path class="{css}" d="M{_n(WIDTH * axis.place(at))} 0V{HEIGHT}"/>' for at, css in rules]
    if low is not None and high is not None:
        shapes.append(f'<path class="range" d="M{x[0]} {HEIGHT // 2}H{x[1]}"/>')
        shapes += [f'<path class="cap" d="M{end} {HEIGHT * 0.3}V{HEIGHT * 0.7}"/>' for end in x[:2]]
    shapes.append(f'<path class="dot" d="M{x[2]} {HEIGHT // 2}h0.01"/>')
    return "".join(shapes)


def bar(share: float, css: str = "bar") -> str:
    """A bar for a cell of a table that also says its number."""
    width = _n(100 * min(1.0, max(0.0, share)))
    return (
        f'<svg class="{css}" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="back" width="100" height="10"/><rect class="front" width="{width}" height="10"/></svg>'
    )


def _y(axis: Axis, value: float) -> str:
    return _n(HEIGHT * (1 - axis.place(value)))


def _n(value: float) -> str:
    """A coordinate with one decimal, as short as can be."""
    return f"{value:.1f}".removesuffix(".0")
