"""Encoded samples by number, out of the shards of one split, each proven against the sample index."""

import hashlib

from vast.dataset_format import SampleRow, read_manifest
from vast.errors import StoreError, UserError
from vast.sample_index import read_index
from vast.storage import open_store


class SampleSource:
    """Reads samples of one data set, given their rows of the index.

    It holds no index itself, so a copy of it in each reader process costs nothing.
    """

    def __init__(self, url: str) -> None:
        self._store = open_store(url)

    def read(self, row: SampleRow) -> bytes:
        """Return the encoded media of a sample, checked against its sha256; a mismatch is read once more.

        Raises:
            StoreError: The shard cannot be read, or its bytes are not those that were indexed.
        """
        for _ in range(2):
            try:
                data = self._store.get_range(row.shard, row.offset, row.size_bytes)
            except StoreError as error:
                raise type(error)(f"{self.describe(row)}: {error}") from error
            found = hashlib.sha256(data).hexdigest()
            if found == row.sha256:
                return data
        raise StoreError(
            f"{self.describe(row)}: sha256 is {found[:12]}…, the index says {row.sha256[:12]}…, twice in a row; "
            f"the shard is damaged: run `vast data verify {self._store.url}`"
        )

    def describe(self, row: SampleRow) -> str:
        """Name a sample for people: data set, key, shard and byte range."""
        last = row.offset + row.size_bytes - 1
        return f"{self._store.url}: sample {row.key} in {row.shard}, bytes {row.offset}..{last}"


class ShardDataset:
    """One split of a shard data set; sample i is row i of its index. It may be pickled.

    Raises:
        UserError: There is no such data set or split, or it holds images.
    """

    def __init__(self, url: str, split: str) -> None:
        self.url = url
        self.split = split
        self.manifest = read_manifest(url)
        if self.manifest.media != "video":
            raise UserError(
                f"{url} holds {self.manifest.media}s; training and evaluation read videos: give a data set of clips"
            )
        self.index = read_index(url, split)
        self.source = SampleSource(url)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def classes(self) -> list[str]:
        """Class names; the position is the label id."""
        return self.manifest.classes

    def read(self, i: int) -> bytes:
        """Return the encoded media of sample i.

        Raises:
            StoreError: The shard cannot be read, or its bytes are not those that were indexed.
        """
        return self.source.read(self.index.row(i))
