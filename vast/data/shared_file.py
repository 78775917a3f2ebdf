"""Memory that a process shares with those it starts."""

import mmap
import os
import weakref
from multiprocessing.reduction import DupFd
from typing import Any


class SharedFile:
    """Memory without a name (memfd, which Linux has), so that nothing is left of it when all its processes are gone.

    It takes no room before it is written to, and is not bounded by /dev/shm, which has 64 MB in a container. As an
    argument of a process that is started it maps the same memory there; it cannot be pickled otherwise.

    Args:
        name: Shown in /proc.
        size_bytes: How much of it there is.
    """

    def __init__(self, name: str, size_bytes: int) -> None:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size_bytes)
        self._take(descriptor, size_bytes)

    def _take(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor, self._size_bytes = descriptor, size_bytes
        # What has been mapped stays.
        weakref.finalize(self, os.close, descriptor)
        self.map = mmap.mmap(descriptor, size_bytes)

    def __reduce__(self) -> tuple[Any, tuple[Any, int]]:
        return _received, (DupFd(self._descriptor), self._size_bytes)


def _received(descriptor: Any, size_bytes: int) -> SharedFile:
    file = SharedFile.__new__(SharedFile)
    file._take(descriptor.detach(), size_bytes)
    return file
