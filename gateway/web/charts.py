"""Charts as SVG made on the server: they need no script, and their text can be tested.

Colours come from the style sheet by class. Knows numbers and labels; beside each chart the page
shows the same numbers as a table.
"""

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

import msgspec
from markupsafe import Markup

from gateway.web.figures import usd

WIDE, NARROW, HEIGHT = 960, 420, 260  # the page shows the one that fits
_RIGHT, _TOP, _BOTTOM = 8, 16, 30
_LEFT_LEAST, _TICK_GAP, _DIGIT_WIDTH = 84, 10, 8  # a digit of 13 px is below 8 px wide
_LABEL_EVERY = 5  # days between labels under the axis
_EMPTY = "Nothing was charged or saved."


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One day: what was spent, and what was saved on top of it. Pico-USD."""

    label: str  # under the axis, "14"
    title: str  # read out and shown on hover, "14 November"
    spent_pico: int
    saved_pico: int  # drawn only where positive


def daily_chart(bars: Sequence[Bar], title: str, width: int = WIDE) -> Markup:
    """Stacked bars of spend and saving per day, with three labelled grid lines.

    width: of the picture, in its own units. Without any amount only the zero is labelled, and the
    chart says that it is empty.
    """
    highest = max((bar.spent_pico + max(0, bar.saved_pico) for bar in bars), default=0)
    top_pico = nice_ceiling(highest)
    labels = {quarter: usd(top_pico * quarter // 4) for quarter in ((0, 2, 4) if highest else (0,))}
    left = max(_LEFT_LEAST, _TICK_GAP + _DIGIT_WIDTH * max(map(len, labels.values())))
    plot_height = HEIGHT - _TOP - _BOTTOM
    base = HEIGHT - _BOTTOM
    parts = [
        f'<svg class="chart{" narrow" if width == NARROW else ""}" viewBox="0 0 {width} {HEIGHT}"'
        f' role="img" aria-label={quoteattr(title)}>'
    ]
    for quarter in (0, 1, 2, 3, 4):
        y = base - plot_height * quarter / 4
        kind = "axis" if quarter == 0 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{left}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        if quarter in labels:
            label = escape(labels[quarter])
            parts.append(
                f'<text class="tick" x="{left - _TICK_GAP}" y="{y + 4:.1f}">{label}</text>'
            )
    if not highest:
        middle = (left + width - _RIGHT) / 2
        parts.append(f'<text class="day" x="{middle:.1f}" y="{HEIGHT / 2}">{_EMPTY}</text>')
    slot = (width - left - _RIGHT) / max(1, len(bars))
    for index, bar in enumerate(bars):
        parts.append(_bar(bar, index, left + slot * index, slot, base, plot_height, top_pico))
    parts.append("</svg>")
    return Markup("".join(parts))  # noqa: S704 - every text above went through escape or quoteattr


def _bar(
    bar: Bar, index: int, start: float, slot: float, base: float, plot_height: float, top_pico: int
) -> str:
    left = start + slot * 0.16
    width = slot * 0.68
    spent = plot_height * bar.spent_pico / top_pico
    saved = plot_height * max(0, bar.saved_pico) / top_pico
    # At least one pixel: a day with little spend is not a day without.
    spent = max(spent, 1.0) if bar.spent_pico > 0 else 0.0
    hover = f"{bar.title}: {usd(bar.spent_pico)} spent, {usd(bar.saved_pico)} saved"
    parts = [f"<g><title>{escape(hover)}</title>"]
    for kind, height, below in (("spent", spent, 0.0), ("saved", saved, spent)):
        if height > 0:
            parts.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{base - below - height:.1f}"'
                f' width="{width:.1f}" height="{height:.1f}"/>'
            )
    if index == 0 or (index + 1) % _LABEL_EVERY == 0:
        middle = left + width / 2
        label = escape(bar.label)
        parts.append(f'<text class="day" x="{middle:.1f}" y="{base + 19}">{label}</text>')
    parts.append("</g>")
    return "".join(parts)


def nice_ceiling(pico: int) -> int:
    """The smallest of 1, 2, 4, 5 and 10 times a power of ten that is not below ``pico``."""
    if pico <= 0:
        return 1
    power = int("1" + "0" * (len(str(pico)) - 1))
    return next(step * power for step in (1, 2, 4, 5, 10) if step * power >= pico)


def meter(part_ppm: int, label: str, *, alarming: bool = True) -> Markup:
    """A horizontal bar filled to ``part_ppm`` parts per million, at most full.

    ``alarming`` ones change colour from 80 % on, and again when full.
    """
    filled = 200 * max(0, min(part_ppm, 1_000_000)) / 1_000_000
    kind = "within"
    if alarming and part_ppm >= 800_000:
        kind = "over" if part_ppm >= 1_000_000 else "near"
    return Markup(  # noqa: S704 - the label is quoted, the rest are our numbers
        f'<svg class="meter" viewBox="0 0 200 8" preserveAspectRatio="none" role="img"'
        f" aria-label={quoteattr(label)}>"
        '<rect class="track" width="200" height="8" rx="4"/>'
        f'<rect class="{kind}" width="{filled:.1f}" height="8" rx="4"/></svg>'
    )
