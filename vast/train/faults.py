"""What went wrong in a run without ending it: counted over all ranks, saved with the state, and bounded.

Two limits end a run, with an error that retrying would only repeat: too many steps in a row without a finite gradient
(`optim.max_nonfinite`), and too large a share of samples that cannot be decoded (`data.max_skipped`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vast.data.reader import TrainBatch
from vast.errors import UserError

_MAX_NAMED = 8  # keys of one step in the error, so that it can be read


@dataclass
class Faults:
    """The counts. Every rank holds the same ones."""

    skipped: int = 0
    """Times that a sample was skipped because it could not be decoded."""
    nonfinite: int = 0
    """Steps that were skipped because loss or gradient was not finite."""
    overflow: int = 0
    """Steps that fp16 skipped to lower its loss scale, as it is meant to."""
    row: dict[int, list[int]] = field(default_factory=dict)
    """The latest steps in a row that were not finite, each with the samples at fault."""

    def to_plain(self) -> dict[str, Any]:
        """Plain numbers, as they are saved."""
        return asdict(self)

    def restore(self, plain: dict[str, Any]) -> None:
        """Go back to counts that were saved."""
        vars(self).update(vars(Faults(**plain)))

    def finite(self) -> None:
        """A step went well."""
        self.row = {}

    def not_finite(self, step: int, samples: list[int], most: int, key_of: Callable[[int], str]) -> None:
        """Count a step whose loss or gradient was not finite.

        Raises:
            UserError: that was one more in a row than `most`.
        """
        self.nonfinite += 1
        self.row[step] = samples
        if len(self.row) <= most:
            return
        lines = "\n  ".join(f"step {step}: {_named(samples, key_of)}" for step, samples in self.row.items())
        raise UserError(
            f"optim.max_nonfinite: loss or gradient was not finite in {len(self.row)} steps in a row, and {most} are "
            f"allowed. None of them changed the weights. The steps and their samples:\n  {lines}\n"
            "Lower optim.lr, set optim.clip_norm, or train in bf16 or fp32; if one sample recurs, look at it"
        )

    def skip(self, number: int, most: float, samples_so_far: int) -> None:
        """Count samples that could not be decoded.

        Raises:
            UserError: they are a larger share than `most` of the samples so far (or of an epoch, while in the first).
        """
        self.skipped += number
        if number and self.skipped > most * samples_so_far:
            raise UserError(
                f"data.max_skipped: {self.skipped} samples could not be decoded, which is more than {most:.2%} of "
                f"{samples_so_far}; they are named above. Look at the shards with `vast data verify`, or allow more"
            )


def _named(samples: Sequence[int], key_of: Callable[[int], str]) -> str:
    names = ", ".join(key_of(sample) for sample in samples[:_MAX_NAMED])
    return names + (f" and {len(samples) - _MAX_NAMED} more" if len(samples) > _MAX_NAMED else "")


def samples_at_fault(
    batches: Sequence[TrainBatch], losses: Sequence[Tensor], *, global_batch: int, num_ranks: int
) -> list[int]:
    """Samples of a step whose own loss is not finite, else all of the step; over all ranks, which call it together."""
    device = losses[0].device
    position = torch.cat([batch.position_B for batch in batches]).to(device)
    sample = torch.cat([batch.sample_B for batch in batches]).to(device)
    sample_G, bad_G = (torch.zeros(global_batch, dtype=torch.int64, device=device) for _ in range(2))
    sample_G[position] = sample
    bad_G[position] = (~torch.cat(list(losses)).isfinite()).long()
    if num_ranks > 1:
        dist.all_reduce(sample_G)
        dist.all_reduce(bad_G)
    at_fault = sample_G[bad_G.bool()] if bad_G.any() else sample_G
    return list(dict.fromkeys(at_fault.tolist()))
