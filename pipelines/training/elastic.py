"""Elastic runs: Ray Train chooses the number of ranks by the cluster's room, we by what the global batch allows."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy


class _EqualShares(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray Train's elastic policy, rounded down to a number of ranks that can share the global batch."""

    def __init__(self, scaling_config: Any, possible: list[int]) -> None:
        super().__init__(scaling_config)
        self._possible = possible

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        room = super()._count_possible_workers(reserved_resources)
        return max((number for number in self._possible if number <= room), default=0)


class EqualSharesTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer whose elastic runs take only possible numbers of ranks. Ray 2.60 has no public place for that."""

    def __init__(self, *arguments: Any, possible: list[int], **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._possible = possible

    def _initialize_and_run_controller(self, **keywords: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            keywords["scaling_policy"] = _EqualShares(self.scaling_config, self._possible)
        return super()._initialize_and_run_controller(**keywords)
