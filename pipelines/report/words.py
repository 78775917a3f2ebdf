"""Numbers and times as a reader wants them."""

import datetime


def count(number: float) -> str:
    """A whole number with its thousands apart."""
    return f"{round(number):,}".replace(",", " ")


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def percent(value: float) -> str:
    """A value that is in percent already."""
    return f"{value:.2f} %"


def span(seconds: float) -> str:
    """A duration, in the two units that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 60:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    if hours < 48:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(days)} days {int(hours % 24)} h"


def moment(seconds: float) -> str:
    """A point in time."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def setting(value: object) -> str:
    """The value of a setting as it is written on the command line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(setting(part) for part in value) + "]"
    if value is None:
        return "null"
    return "(empty)" if value == "" else str(value)
