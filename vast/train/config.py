"""The one frozen config that a recipe validates into.

World size, hosts and devices are deliberately absent: the same config runs on one CPU or 512 GPUs with the same global
batch. One spelling everywhere: the dotted path of a field (`optim.lr`) is the command-line override, the search-space
key, the MLflow parameter and the name in error messages.
"""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vast.data.config import DataConfig
from vast.data.protocols import check_protocol, resolve_protocol
from vast.errors import UserError
from vast.models.variants import ModelConfig


class Section(BaseModel):
    """A frozen part of the config: unknown keys are errors, defaults are validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class OptimConfig(Section):
    """The optimizer, its schedule and the batch it was tuned for."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Update rule; sgd is with Nesterov momentum."""
    lr: float = Field(1.0e-3, gt=0, le=10)
    """Peak learning rate, at the stated global batch."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor on the learning rate for each block further from the classifier, for fine-tuning; 1 switches it off."""
    weight_decay: float = Field(0.05, ge=0, le=1)
    """Decoupled weight decay; never applied to biases, norms and other one-dimensional parameters."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd; the first beta of adamw."""
    beta2: float = Field(0.999, gt=0, lt=1)
    """The second beta of adamw."""
    epochs: int = Field(30, ge=1)
    """Passes over the training split."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Linear warm-up, in epochs; then cosine decay per step."""
    min_lr_ratio: float = Field(0.01, ge=0, le=1)
    """Learning rate at the last step as a fraction of the peak."""
    global_batch: int = Field(64, ge=1)
    """Clips per step over all ranks; accumulation is derived from it."""
    max_micro_batch: int = Field(16, ge=1)
    """Most clips in one forward pass on one rank; bounds memory, never changes the global batch."""
    clip_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this L2 norm; 0 switches clipping off."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread over all classes."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the moving average of the weights, which is then what is scored and published; 0 switches it off."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type of the forward and backward pass; weights, optimizer and loss stay fp32. fp16 scales the loss."""
    compile: bool = False
    """Whether the blocks of the network are compiled by torch.compile: a slower start, faster steps on a GPU."""
    max_nonfinite: int = Field(10, ge=0)
    """Steps in a row whose loss or gradient is not finite that are skipped and counted; one more ends the run."""


class EvalConfig(Section):
    """How the model is scored during and after training."""

    protocol: str = "1x1"
    """Temporal clips x spatial crops, as 4x3, or a name (`vast evaluate --protocols`). Scores are means of softmax."""
    every_epochs: int = Field(1, ge=1)
    """Evaluate after this many epochs; the last epoch is always evaluated."""
    batch_videos: int = Field(16, ge=1)
    """Most videos in one batch on one rank; fewer where their views would be more clips than one forward pass takes."""

    @model_validator(mode="after")
    def _protocol_is_well_formed(self) -> "EvalConfig":
        check_protocol(self.protocol)
        return self


class CheckpointConfig(Section):
    """When the state is saved, and how much of it is kept."""

    every_epochs: int = Field(1, ge=1)
    """Save after this many epochs; the last epoch is always saved."""
    every_steps: int = Field(0, ge=0)
    """Save after this many steps as well; 0 leaves it at epochs."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept in the store, unless keep_best says otherwise."""
    keep_best: int = Field(0, ge=0)
    """Keep so many with the highest eval/top1, and the last one, instead of the newest; 0: the newest."""


class TrainConfig(Section):
    """Everything that decides what a run computes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """What the run is called; with the config's digest it names the run in the store."""
    seed: int = Field(0, ge=0)
    """Seeds the initial weights, the order of data and every augmentation."""
    model: ModelConfig
    """The network."""
    data: DataConfig
    """The shards and how clips are drawn from them."""
    optim: OptimConfig = OptimConfig()
    """The optimizer, its schedule and the batch."""
    eval: EvalConfig = EvalConfig()
    """Scoring."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""
    init_from: str = ""
    """URL of weights to start from (a checkpoint or a run); the head is made anew when the classes differ."""
    resume_from: str = ""
    """URL of another run's checkpoint to continue exactly; this run's own last checkpoint comes first."""
    log_every_steps: int = Field(10, ge=1)
    """Figures go to the tracker after this many steps."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        problems = []
        together, optim = self.data.clips_together, self.optim
        why = f"as clips stay together in groups of {together} (mixup and cutmix: 2; data.repeats=k: 2k)"
        if optim.global_batch % together:
            problems.append(f"optim.global_batch: {optim.global_batch}, must be a multiple of {together}, {why}")
        if optim.max_micro_batch < together:
            problems.append(f"optim.max_micro_batch: {optim.max_micro_batch}, must be at least {together}, {why}")
        try:
            resolve_protocol(self.eval.protocol, self.data)
        except UserError as error:
            problems.append(f"eval.{error}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def flat(self) -> dict[str, Any]:
        """Every leaf by its dotted path, in the order of the fields."""
        return _flatten(self.model_dump(mode="json"))

    def digest(self) -> str:
        """Eight hex digits that identify what this config computes."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def run_name(self) -> str:
        """Name of the run in the store: the same config resumes under it, another config never does."""
        return f"{self.name}-{self.digest()}"


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves.update(_flatten(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
