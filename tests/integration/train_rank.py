"""One rank of a gloo job without Ray: `train_rank.py RANK NUM_RANKS CONFIG_JSON FOLDER [PLAN_JSON]`.

Each rank writes FOLDER/rank-RANK.json, and rank 0 the weights to FOLDER/out and checkpoints to FOLDER/step-N. The plan
may say
{"own": folder}             start from this checkpoint
{"stop": [rank, step]}      this rank asks the run to end while it takes that step (counted from 1)
{"spoil": [step, position]} the clip at this place of that step (both from 0) has no finite loss
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from vast.train import step as step_module
from vast.train.config import TrainConfig
from vast.train.job import Place
from vast.train.loop import Run


class Watcher:
    """Tracker and observer that keep the losses and the checkpoints and, if planned, ask to stop."""

    def __init__(self, rank, folder, stop_in_step):
        self.rank, self.folder = rank, folder
        self.stop_in_step, self.asked = stop_in_step, 0
        self.losses, self.notes = {}, []

    def log(self, step, figures):
        if "train/loss" in figures:
            self.losses[step] = figures["train/loss"]

    def started(self, message, step, total_steps):
        pass

    def stepped(self, step, total_steps, figures):
        pass

    def saved(self, step, figures, write):
        if self.rank == 0:
            write(self.folder / f"step-{step}")

    def evaluated(self, epoch, step, result):
        return False

    def noted(self, text):
        self.notes.append(text)

    def wants_stop(self):
        self.asked += 1
        return self.asked == self.stop_in_step


def spoil(at_step, position):
    mix = step_module.mix

    def spoiled(clip_BCTHW, label_B, weight_B, position_B, **rest):
        clip_BCTHW, target_BK = mix(clip_BCTHW, label_B, weight_B, position_B, **rest)
        if rest["step"] == at_step:
            clip_BCTHW[position_B == position] = float("nan")
        return clip_BCTHW, target_BK

    step_module.mix = spoiled


def main(rank: int, num_ranks: int, config: str, folder: str, plan: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
    stop_rank, stop_step = plan.get("stop", (None, None))
    watcher = Watcher(rank, Path(folder), stop_step if rank == stop_rank else None)
    if "spoil" in plan:
        spoil(*plan["spoil"])
    run = Run(TrainConfig.model_validate_json(config), Place(rank, num_ranks), watcher, watcher)
    outcome = run.fit(Path(plan["own"]) if "own" in plan else None)
    told = {
        "step": outcome.step,
        "interrupted": outcome.interrupted,
        "faults": asdict(run.state.faults),
        "score": outcome.score.to_json() if outcome.score else None,
        "losses": watcher.losses,
        "notes": watcher.notes,
    }
    with open(f"{folder}/rank-{rank}.json", "w") as file:
        json.dump(told, file)
    if rank == 0:
        torch.save({"weights": run.state.published.state_dict(), "raw": run.model.state_dict()}, f"{folder}/out")
    dist.destroy_process_group()
    os._exit(0)  # freeing what DDP holds may wait for gloo's threads for ever; see vast.train.evaluate


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], json.loads((sys.argv[5:] or ["{}"])[0]))
