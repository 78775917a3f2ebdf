"""Our object store as the file system on which Ray Train keeps its record of a run.

Ray Train's controller writes that record (`checkpoint_manager_snapshot.json`) after each checkpoint, with no second try
and, on a disk, in place: one refused connection ends the run, and a kill in mid-write leaves a record that no later run
can read. Through `vast.storage` it is replaced in one piece and the store gets minutes to come back.
"""

import io
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pyarrow.fs as pafs
from pyarrow import BufferReader, PythonFile

from vast.errors import ObjectDamaged, ObjectMissing, StoreError
from vast.storage import join_url, open_store

T = TypeVar("T")

PATIENCE_S = 300.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0


def patiently(action: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Do something with a store, again and again while it fails, at most this long.

    Raises:
        StoreError: The store's own answer to the last try; a missing or damaged object is an answer and raised at once.
    """
    deadline = time.monotonic() + patience_s
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return action()
        except (ObjectMissing, ObjectDamaged):
            raise
        except StoreError:
            if time.monotonic() + wait_s > deadline:
                raise
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def storage_for(output: str) -> dict[str, Any]:
    """Arguments of Ray Train's RunConfig that keep runs under the store's URL `output`."""
    scheme = "s3://" if output.startswith("s3://") else ""
    return {
        "storage_path": output.removeprefix("s3://"),
        "storage_filesystem": pafs.PyFileSystem(StoreHandler(scheme)),
    }


class _Upload(io.BytesIO):
    """A small object in the making; it is put when closed."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        super().__init__()
        self._put = put

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._put(data)


class StoreHandler(pafs.FileSystemHandler):  # type: ignore[misc]
    """What pyarrow asks of a file system, as far as Ray Train uses it: small files, existence, removal of folders.

    It is pickled to every rank and holds no credentials: each process takes them from its own environment.
    """

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreHandler) and other.scheme == self.scheme

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def _split(self, path: str) -> tuple[str, str]:
        folder, _, name = path.rstrip("/").rpartition("/")
        return f"{self.scheme}{folder}", name

    def get_type_name(self) -> str:
        """Name of the kind, for messages."""
        return f"vast-{self.scheme or 'local'}"

    def normalize_path(self, path: str) -> str:
        """Paths are keys already."""
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """Whether each path is an object, a folder of objects, or nothing."""
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        url, name = self._split(path)
        store = open_store(url)
        if patiently(lambda: store.exists(name)):
            return pafs.FileInfo(path, pafs.FileType.File)
        inside = patiently(lambda: next(iter(open_store(f"{self.scheme}{path}").list()), None))
        return pafs.FileInfo(path, pafs.FileType.NotFound if inside is None else pafs.FileType.Directory)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """The objects in and below a folder, or the objects and folders directly in it."""
        url = f"{self.scheme}{selector.base_dir}"
        keys = patiently(lambda: list(open_store(url).list()))
        found = {}
        for key in keys:
            name, _, rest = key.partition("/")
            shown, kind = (
                (key, pafs.FileType.File) if selector.recursive or not rest else (name, pafs.FileType.Directory)
            )
            found[shown] = pafs.FileInfo(join_url(selector.base_dir, shown), kind)
        return list(found.values())

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: a folder is there when something is in it."""

    def delete_dir(self, path: str) -> None:
        """Remove every object below, and on a disk the folders themselves."""
        store = open_store(f"{self.scheme}{path}")
        for key in patiently(lambda: list(store.list())):
            patiently(partial(store.delete, key))
        if not self.scheme:
            shutil.rmtree(path, ignore_errors=True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Remove every object below."""
        self.delete_dir(path)

    def delete_file(self, path: str) -> None:
        """Remove one object."""
        url, name = self._split(path)
        patiently(lambda: open_store(url).delete(name))

    def open_input_stream(self, path: str) -> Any:
        """A whole object."""
        url, name = self._split(path)
        try:
            return BufferReader(patiently(lambda: open_store(url).get_bytes(name)))
        except ObjectMissing as error:
            raise FileNotFoundError(path) from error

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        """An object that appears, in one piece, when the stream is closed."""
        url, name = self._split(path)

        def put(data: bytes) -> None:
            patiently(lambda: open_store(url).put_bytes(name, data))

        return PythonFile(_Upload(put), mode="w")

    def _refuse(self, *arguments: Any) -> Any:
        raise NotImplementedError(f"{self.get_type_name()}: Ray Train was not known to use this")

    delete_root_dir_contents = _refuse
    move = _refuse
    copy_file = _refuse
    open_append_stream = _refuse
