"""The videos that a person names: files, folders, objects of a store, all below a prefix."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vast.errors import UserError
from vast.storage import open_store

SUFFIXES = frozenset(
    {".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ogv", ".3gp", ".flv", ".wmv", ".ts"}
)


@dataclass(frozen=True)
class Video:
    """One video to look at."""

    name: str
    """As it is told to people: a path or URL."""
    folder: str
    """URL of the store that holds it."""
    key: str

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            StoreError: it cannot be read.
        """
        return open_store(self.folder).get_bytes(self.key)

    def fetch(self, path: Path) -> None:
        """Its bytes as a file, whatever their number."""
        open_store(self.folder).get_file(self.key, path)


def find_videos(words: Sequence[str]) -> list[Video]:
    """The videos that the words mean, each once, folders in the order of names.

    Raises:
        UserError: a word means nothing, with what was looked for.
    """
    found: dict[str, Video] = {}
    for word in words:
        videos = _at(word)
        if not videos:
            raise UserError(
                f"VIDEO: {word}: no such file, and no folder or prefix with videos below it; a video's name ends in "
                f"{', '.join(sorted(SUFFIXES))}"
            )
        found |= {video.name: video for video in videos}
    return list(found.values())


def _at(word: str) -> list[Video]:
    if "://" not in word:
        path = Path(word)
        if path.is_file():
            return [Video(word, str(path.resolve().parent), path.name)]
        if not path.is_dir():
            return []
    else:
        folder, _, name = word.rstrip("/").rpartition("/")
        if not folder.endswith((":", ":/")) and open_store(folder).exists(name):  # else there is only a bucket
            return [Video(word, folder, name)]
    store = open_store(word if "://" in word else str(Path(word).resolve()))
    keys = [key for key in store.list() if Path(key).suffix.lower() in SUFFIXES]
    return [Video(f"{word.rstrip('/')}/{key}", store.url, key) for key in keys]
