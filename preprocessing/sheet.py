"""How a contact sheet is set: groups of strips of pictures under one heading, drawn with Pillow."""

import contextlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MAX_WIDTH = 1800
"""Pixels; what a browser or an image viewer shows without scaling."""
MIN_WIDTH = 860
MARGIN = 40
HEAD_HEIGHT = 64
GROUP_GAP = 36
"""Between groups, with a line in the middle."""
STRIP_GAP = 14
GAP = 8
"""Between the pictures of a strip."""
MAX_CELL_WIDTH = 232
MIN_LABELLED_WIDTH = 90
"""A label would hide much of a narrower picture."""
TEXT_WIDTH = 264
TEXT_GAP = 24
MAX_LETTERS = 250
"""Of a text; measuring longer ones would take time, and nothing of their end is shown."""

_WHITE, _INK, _GREY, _LINE, _EMPTY = "#ffffff", "#16191d", "#6b7280", "#e5e7eb", "#f3f4f6"
_MAX_TITLE_LINES = 4


@dataclass(frozen=True)
class CellSize:
    """The room of one picture in pixels."""

    width: int
    height: int

    def fit(self, image: Image.Image) -> Image.Image:
        """Return the picture scaled to just fit in, its shape kept."""
        scale = min(self.width / image.width, self.height / image.height)
        size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
        return image.resize(size, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Picture:
    """One picture, already scaled by `CellSize.fit`, or None where there is none to be had."""

    image: Image.Image | None
    label: str
    """Written into its corner."""


@dataclass(frozen=True)
class Strip:
    """One row."""

    caption: Sequence[str]
    """Lines beside the row."""
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Group:
    """Rows under one title."""

    title: str
    subtitle: str
    strips: Sequence[Strip]


def cell_size(num_columns: int) -> CellSize:
    """Return the largest cells with which a sheet of so many columns keeps to `MAX_WIDTH`."""
    room = MAX_WIDTH - 2 * MARGIN - TEXT_WIDTH - TEXT_GAP - (num_columns - 1) * GAP
    width = min(MAX_CELL_WIDTH, room // num_columns)
    return CellSize(width, round(0.78 * width))


def draw_sheet(title: str, subtitle: str, groups: Sequence[Group], size: CellSize) -> Image.Image:
    """Draw the groups one below the other.

    A row is as high as its tallest picture or its text. Text that does not fit is wrapped, then cut with an ellipsis;
    characters that the font does not have show as boxes.
    """
    rows = [_Row(group if i == 0 else None, strip, size) for group in groups for i, strip in enumerate(group.strips)]
    columns = max(len(row.strip.pictures) for row in rows)
    grid = columns * size.width + (columns - 1) * GAP
    width = max(MIN_WIDTH, 2 * MARGIN + TEXT_WIDTH + TEXT_GAP + grid)
    height = MARGIN + HEAD_HEIGHT + sum(row.space_above + row.height for row in rows) + MARGIN
    sheet = Image.new("RGB", (width, height), _WHITE)
    draw = ImageDraw.Draw(sheet)
    room = width - 2 * MARGIN
    draw.text((MARGIN, MARGIN), elided(title, load_font(26, bold=True), room), _INK, load_font(26, bold=True))
    draw.text((MARGIN, MARGIN + 38), elided(subtitle, load_font(15), room), _GREY, load_font(15))
    y = MARGIN + HEAD_HEIGHT
    for row in rows:
        y += row.space_above
        if row.group is not None:
            line = y - GROUP_GAP // 2
            draw.line([(MARGIN, line), (width - MARGIN, line)], _LINE, 1)
        row.draw(sheet, draw, y)
        y += row.height
    return sheet


class _Row:
    """A strip with its text, laid out before it is drawn, as the sheet's height must be known first."""

    def __init__(self, group: Group | None, strip: Strip, size: CellSize) -> None:
        self.group, self.strip, self._size = group, strip, size
        self.space_above = STRIP_GAP if group is None else GROUP_GAP
        self._lines: list[tuple[str, Font, str, int]] = []
        if group is not None:
            bold = load_font(16, bold=True)
            self._lines += [(line, bold, _INK, 22) for line in wrapped(group.title, bold, TEXT_WIDTH, _MAX_TITLE_LINES)]
            self._lines.append((group.subtitle, load_font(13), _GREY, 26))
        self._lines += [
            (elided(line, load_font(13), TEXT_WIDTH), load_font(13), _INK if i == 0 else _GREY, 19)
            for i, line in enumerate(strip.caption)
        ]
        heights = [picture.image.height for picture in strip.pictures if picture.image is not None]
        self._tallest = max(heights, default=size.height * 3 // 4)
        self.height = max(self._tallest, sum(advance for *_, advance in self._lines))

    def draw(self, sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int) -> None:
        y = top - 3  # the letters, not the room above them, begin where the pictures do
        for text, font, colour, advance in self._lines:
            draw.text((MARGIN, y), text, colour, font)
            y += advance
        left = MARGIN + TEXT_WIDTH + TEXT_GAP
        for picture in self.strip.pictures:
            self._draw_picture(sheet, draw, picture, left, top)
            left += self._size.width + GAP

    def _draw_picture(
        self, sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Picture, left: int, top: int
    ) -> None:
        room = self._size.width
        image = picture.image
        height = self._tallest
        if image is None or image.width < room - 1 or image.height < height - 1:
            draw.rectangle((left, top, left + room - 1, top + height - 1), _EMPTY)
        if image is None:
            font = load_font(13)
            text = elided("cannot be decoded", font, room - 12)
            draw.text((left + room / 2, top + height / 2), text, _GREY, font, anchor="mm")
        else:
            left += (room - image.width) // 2
            top += (height - image.height) // 2
            room, height = image.width, image.height
            sheet.paste(image, (left, top))
        _draw_label(sheet, draw, picture.label, left, top + height, room)


def _draw_label(sheet: Image.Image, draw: ImageDraw.ImageDraw, label: str, left: int, bottom: int, room: int) -> None:
    """Write into the lower left corner of a picture, on a shade, so that it is legible on any."""
    font = load_font(11)
    text = elided(label, font, room - 14)
    if not text or room < MIN_LABELLED_WIDTH:
        return
    width, height = round(font.getlength(text)) + 10, 17
    box = (left + 4, bottom - height - 4, left + 4 + width, bottom - 4)
    shade = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), "black")
    sheet.paste(Image.blend(sheet.crop(box), shade, 0.6), box)
    draw.text((box[0] + 5, (box[1] + box[3]) / 2), text, _WHITE, font, anchor="lm")


def elided(text: str, font: Font, width: float) -> str:
    """Return the text on one line, cut with an ellipsis where it is wider than `width` pixels."""
    text = _printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


def wrapped(text: str, font: Font, width: float, max_lines: int) -> list[str]:
    """Return the text in lines of at most `width` pixels, the last one cut where more than `max_lines` were needed."""
    lines: list[str] = []
    line = ""
    for word in _printable(text).split():
        joined = f"{line} {word}".strip()
        if font.getlength(joined) <= width:
            line = joined
            continue
        lines += [line] if line else []
        # A word wider than the line, such as a class name in a script without spaces, is broken anywhere.
        while font.getlength(word) > width:
            fits = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    lines += [line] if line else []
    if len(lines) > max_lines:
        lines[max_lines - 1 :] = [elided(" ".join(lines[max_lines - 1 :]), font, width)]
    return lines


def _printable(text: str) -> str:
    """Keep what a font can be asked for on one line."""
    return "".join(character if character.isprintable() else " " for character in text[:MAX_LETTERS])


@lru_cache
def load_font(size: int, bold: bool = False) -> Font:
    """DejaVu Sans, which matplotlib ships: Pillow's own font has no letter beyond English."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    spec = importlib.util.find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        with contextlib.suppress(OSError):
            return ImageFont.truetype(Path(folder, "mpl-data", "fonts", "ttf", name), size)
    return ImageFont.load_default(size)
