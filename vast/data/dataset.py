"""Encoded samples by number, out of the shards of one split, each proven against the sample index."""

from vast.data.fetch import SampleSource
from vast.dataset_format import read_manifest
from vast.sample_index import read_index


class ShardDataset:
    """One split of a shard data set; sample i is row i of its index. It may be pickled.

    Raises:
        UserError: There is no such data set or split.
    """

    def __init__(self, url: str, split: str) -> None:
        self.url = url
        self.split = split
        self.manifest = read_manifest(url)
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
            StoreError: The shard cannot be read, or its bytes are not those that were indexed (ObjectDamaged).
        """
        return self.source.read(self.index.row(i))
