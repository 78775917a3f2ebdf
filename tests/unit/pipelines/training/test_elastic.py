import pytest
from ray.train import ScalingConfig

from pipelines.training.elastic import _EqualShares


@pytest.mark.parametrize(("room", "taken"), [(0, 0), (1, 0), (2, 2), (3, 2), (5, 4), (7, 6), (9, 6)])
def test_a_cluster_with_room_for_any_number_gets_one_that_shares_the_batch_equally(room: int, taken: int) -> None:
    policy = _EqualShares(ScalingConfig(num_workers=(2, 8)), possible=[2, 4, 6])
    nodes = {f"node-{number}": {"CPU": 1.0} for number in range(room)}
    assert policy._count_possible_workers(nodes) == taken
