"""Room for batches in shared memory, which comes back when the last tensor that shows it is gone."""

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

from vast.data.reader import num_bytes
from vast.data.shared_file import SharedFile


class Slots:
    """So many batches of so many bytes each; memory is taken by those that were used."""

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        self.shape = (num_slots, slot_bytes)
        self.file = SharedFile("vast-batches", num_slots * slot_bytes)
        self._free = deque(range(num_slots))
        self._handed_over: set[int] = set()

    def take(self) -> int:
        """Return a free slot; the one used last, whose memory is there already."""
        return self._free.pop()

    def hand_over(self, slot: int, shape: tuple[int, ...], held: int) -> Tensor:
        """Return a slot's pixels; a copy where the caller holds more than it said, so that slots never run out."""
        size_bytes = num_bytes(shape)
        array = np.frombuffer(self.file.map, np.uint8, size_bytes, slot * self.shape[1])
        if len(self._handed_over) >= held:
            self._free.append(slot)  # nothing is written to it before this returns
            return torch.from_numpy(array.reshape(shape).copy())
        self._handed_over.add(slot)
        weakref.finalize(array, self._give_back, slot).atexit = False
        return torch.from_numpy(array).view(shape)

    def _give_back(self, slot: int) -> None:
        self._handed_over.remove(slot)
        self._free.append(slot)
