"""HTML from plain strings: whatever is not `Html` is escaped, so names and errors of others can do no harm.

The page is one file: its style sheet is inside, nothing is fetched, and nothing runs.
"""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files


class Html(str):
    """Markup that goes into the page as it is."""


Content = Html | str | int
_VOID = {"meta", "br", "hr", "line", "rect", "circle", "path", "polyline"}


def tag(name: str, /, *content: Content, **attributes: str | int | float | None) -> Html:
    """One element. Attributes: `class_` is class, other underscores are hyphens; None leaves one out."""
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(_visible(text))}"')
    inside = joined(content)
    if name in _VOID and not inside:
        return Html(f"<{' '.join(words)}/>" if name not in ("meta", "br", "hr") else f"<{' '.join(words)}>")
    return Html(f"<{' '.join(words)}>{inside}</{name}>")


def joined(parts: Iterable[Content]) -> Html:
    """Parts one after the other; what is no `Html` is escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(_visible(str(part))) for part in parts))


def _visible(text: str) -> str:
    """Characters that no page may hold, and those that turn the direction of text, as marks."""
    return "".join("\ufffd" if _is_hidden(ord(character)) else character for character in text)


def _is_hidden(code: int) -> bool:
    control = (code < 32 and code not in (9, 10)) or 127 <= code < 160
    return control or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or 0xD800 <= code <= 0xDFFF


def section(heading: str, *content: Content) -> Html:
    """A part of the story, with an anchor."""
    anchor = "".join(c if c.isalnum() else "-" for c in heading.lower())
    return tag("section", tag("h2", heading), *content, id=anchor)


def paragraph(*content: Content, class_: str | None = None) -> Html:
    """A paragraph."""
    return tag("p", *content, class_=class_)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[Content]], *, marked: Sequence[int] = ()
) -> Html:
    """A table; columns whose heading ends with a right arrow or holds numbers are aligned by the style sheet.

    Args:
        caption: What it shows.
        columns: Headings; one that begins with # is of numbers, and loses that sign.
        rows: Cells.
        marked: Numbers of the rows that stand out.
    """
    kinds = ["number" if column.startswith("#") else None for column in columns]
    head = tag("tr", *(
        tag("th", column.removeprefix("#"), scope="col", class_=kind)
        for column, kind in zip(columns, kinds, strict=True)
    ))  # fmt: skip
    lines = []
    for number, row in enumerate(rows):
        cells = [tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)]
        lines.append(tag("tr", *cells, class_="marked" if number in marked else None))
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *lines))
    return tag("div", whole, class_="wide", tabindex=0, role="region", aria_label=caption)


def facts(pairs: Iterable[tuple[str, Content]]) -> Html:
    """Names and what they are, one below the other."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def key_figures(pairs: Iterable[tuple[str, Content]]) -> Html:
    """The few numbers that matter most, large."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="key")


def figure(drawing: Html, caption: Content) -> Html:
    """A drawing with what it shows."""
    return tag("figure", drawing, tag("figcaption", caption))


def grid(*parts: Html) -> Html:
    """Drawings side by side where there is room."""
    return tag("div", *parts, class_="grid")


def folded(summary: str, *content: Content) -> Html:
    """Something long that a reader opens; on paper it is open."""
    return tag("details", tag("summary", summary), *content)


def command(text: str) -> Html:
    """A command to copy."""
    return tag("pre", tag("code", text))


def note(*content: Content) -> Html:
    """What is missing, or must be known."""
    return tag("p", *content, class_="note")


def document(kind: str, title: str, lede: Content, sections: Sequence[Html], footer: str) -> Html:
    """The whole page."""
    style = Html(files("pipelines.report").joinpath("page.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: {kind}"),
        tag("style", style),
    )
    header = tag("header", tag("p", kind, class_="kind"), tag("h1", title), tag("p", lede, class_="lede"))
    body = tag("body", tag("main", header, *sections), tag("footer", footer))
    return joined([Html("<!doctype html>\n"), tag("html", head, body, lang="en"), Html("\n")])
