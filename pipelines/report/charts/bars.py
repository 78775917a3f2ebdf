"""Bars: shares of a whole, and one bar beside each name."""

from collections.abc import Mapping

from pipelines.report.page import Html, joined, tag

_WIDTH = 700
_ROW = 24
_NAMES = 235


def share_bar(shares: Mapping[str, float], label: str) -> Html:
    """One bar cut into at most four shares, which come to 1 together, each with its name and percent below it."""
    parts, left = [], 0.0
    for number, (name, share) in enumerate(shares.items()):
        told = tag("title", f"{name}: {100 * share:.1f} %")
        parts.append(tag("rect", told, class_=f"part-{number}", x=left, y=0, width=share * _WIDTH, height=26))
        left += share * _WIDTH
    at = 0
    for number, (name, share) in enumerate(shares.items()):
        words = f"{name} {100 * share:.1f} %"
        parts.append(tag("rect", class_=f"part-{number}", x=at, y=38, width=11, height=11))
        parts.append(tag("text", words, x=at + 17, y=48, class_="strong"))
        at += 34 + 6 * len(words)
    return _drawing(parts, 54, label)


def bars(percents: Mapping[str, float], label: str, most: float = 100.0) -> Html:
    """A bar for each name, from top to bottom, `most` being the full width."""
    parts = []
    room = _WIDTH - _NAMES - 60
    for number, (name, percent) in enumerate(percents.items()):
        top = number * _ROW
        shown = name if len(name) <= 34 else name[:33] + "…"
        words = tag("text", tag("title", name), shown, class_="strong", x=_NAMES - 8, y=top + 16, text_anchor="end")
        width = max(0.0, percent) / most * room
        parts += [words, tag("rect", class_="bar", x=_NAMES, y=top + 4, width=width, height=_ROW - 8)]
        parts.append(tag("text", f"{percent:.0f} %", x=_NAMES + width + 6, y=top + 16))
    return _drawing(parts, _ROW * len(percents), label)


def _drawing(parts: list[Html], height: int, label: str) -> Html:
    view = f"0 0 {_WIDTH} {height}"
    return tag("svg", tag("title", label), joined(parts), class_="bars", viewBox=view, role="img", aria_label=label)
