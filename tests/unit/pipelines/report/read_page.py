"""A report as its reader gets it: the text that is shown, and the rules that every page keeps."""

import re
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = "<script>alert(1)</script> \"'& <img src=x onerror=alert(1)> \u202e\x07"


class Page(HTMLParser):
    """Text and structure of a page; fails on elements that are not closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def check(self) -> None:
        """What holds for every page: nothing is fetched, nothing runs, and it can be read without eyes."""
        names = [name for name, _ in self.elements]
        assert not {"script", "img", "iframe", "object", "embed", "link", "base", "form"} & set(names)
        for _, attributes in self.elements:
            assert not {"src", "href", "srcset", "background"} & set(attributes)
            assert not [name for name in attributes if name.startswith("on")]
        assert not re.findall(r"url\(|@import", self.source)
        levels = [int(name[1]) for name in names if re.fullmatch(r"h[1-6]", name)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        for name, attributes in self.elements:
            if name == "svg":
                assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
            if name == "th":
                assert attributes["scope"] == "col"
        assert names.count("table") == names.count("caption")
        anchors = [attributes["id"] for name, attributes in self.elements if name == "section"]
        assert len(set(anchors)) == len(anchors)
        assert len(self.source) < 1_500_000
        assert not re.search(r"\b(?:nan|inf|None)\b", self.source)
