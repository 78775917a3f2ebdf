"""One rank of a gloo job without Ray: `train_rank.py RANK NUM_RANKS CONFIG_JSON FOLDER`; rank 0 writes FOLDER/out."""

import json
import os
import sys

import torch
import torch.distributed as dist

from vast.train.config import TrainConfig
from vast.train.loop import Place, Run


class Silent:
    """Tracker and observer of a run that nobody watches."""

    def log(self, step, figures):
        pass

    def started(self, message, step, total_steps):
        pass

    def stepped(self, step, total_steps, figures):
        pass

    def saved(self, step, figures, write):
        pass

    def evaluated(self, epoch, step, result):
        return False


def main(rank: int, num_ranks: int, config: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
    run = Run(TrainConfig.model_validate_json(config), Place(rank, num_ranks), Silent(), Silent())
    outcome = run.fit()
    if rank == 0:
        torch.save({"weights": run.model.state_dict(), "score": json.dumps(outcome.score.to_json())}, f"{folder}/out")
    dist.destroy_process_group()
    os._exit(0)  # freeing what DDP holds may wait for gloo's threads for ever; see vast.train.evaluate


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
