import pytest

from pipelines.training.ranks import Ranks, possible_ranks, scaling_for
from vast.errors import UserError
from vast.train.config import TrainConfig


def config(global_batch: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "name": "x",
            "model": {"name": "vast_micro"},
            "data": {"url": "/x", "num_frames": 8, "crop_size": 32},
            "optim": {"global_batch": global_batch},
        }
    )


@pytest.mark.parametrize(("text", "bounds"), [("1", (1, 1)), ("12", (12, 12)), ("2..8", (2, 8)), ("3..3", (3, 3))])
def test_ranks_are_a_number_or_a_range(text: str, bounds: tuple[int, int]) -> None:
    ranks = Ranks.parse(text)
    assert (ranks.least, ranks.most) == bounds
    assert Ranks.parse(str(ranks)) == ranks


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "2..", "..8", "0..4", "8..2", "2...8", "1.5"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--ranks"):
        Ranks.parse(text)


@pytest.mark.parametrize(
    ("batch", "ranks", "possible"), [(8, (1, 8), [1, 2, 4, 8]), (12, (2, 5), [2, 3, 4]), (64, (16, 16), [16])]
)
def test_only_equal_shares_of_the_global_batch_are_possible(
    batch: int, ranks: tuple[int, int], possible: list[int]
) -> None:
    assert possible_ranks(config(batch), Ranks(*ranks)) == possible


@pytest.mark.parametrize(("ranks", "near"), [((3, 3), "--ranks 2 or 4"), ((5, 7), "--ranks 8 or 4"), ((9, 20), "8")])
def test_an_impossible_split_names_the_nearest_possible_ones(ranks: tuple[int, int], near: str) -> None:
    with pytest.raises(UserError, match=near):
        possible_ranks(config(8), Ranks(*ranks))


@pytest.mark.parametrize(
    ("ranks", "resources", "readers", "expected"),
    [
        (2, {"CPU": 2}, 0, (2, False, {"CPU": 1})),
        (0, {"CPU": 8}, 0, (1, False, {"CPU": 8})),
        (2, {"CPU": 8}, 2, (2, False, {"CPU": 4})),
        (0, {"CPU": 64, "GPU": 8}, 7, (8, True, {"GPU": 1, "CPU": 8})),
        (4, {"CPU": 64, "GPU": 8}, 2, (4, True, {"GPU": 1, "CPU": 3})),
    ],
)
def test_scaling_follows_the_cluster(ranks, resources, readers, expected):
    scaling = scaling_for(Ranks.of(ranks), [resources], readers)
    assert (scaling["num_workers"], scaling["use_gpu"], scaling["resources_per_worker"]) == expected


def test_an_elastic_run_may_begin_below_its_most():
    scaling = scaling_for(Ranks(2, 16), [{"CPU": 64, "GPU": 8}], 2)
    assert scaling["num_workers"] == (2, 16)


@pytest.mark.parametrize(
    ("ranks", "resources", "readers", "most"),
    [(3, {"CPU": 2}, 0, 2), (9, {"CPU": 64, "GPU": 8}, 1, 8), (8, {"CPU": 8, "GPU": 8}, 1, 4)],
)
def test_ranks_that_can_never_be_placed_are_refused(ranks, resources, readers, most):
    with pytest.raises(UserError, match=rf"--ranks: {ranks} ranks .* use --ranks {most}"):
        scaling_for(Ranks.of(ranks), [resources], readers)


@pytest.mark.parametrize(
    ("ranks", "nodes", "each"),
    [(1, [1, 1], 1), (1, [4, 2], 4), (2, [3, 3], 3), (2, [4, 2], 2), (3, [4, 2], 2), (2, [0, 5], 2)],
)
def test_a_rank_is_given_no_more_cpus_than_a_node_has(ranks, nodes, each):
    scaling = scaling_for(Ranks.of(ranks), [{"CPU": cpus} for cpus in nodes], 0)
    assert scaling["resources_per_worker"] == {"CPU": each}


def test_gpus_without_enough_cpus_beside_them_are_no_room():
    with pytest.raises(UserError, match="use --ranks 3"):
        scaling_for(Ranks.of(4), [{"CPU": 4, "GPU": 2}, {"CPU": 2, "GPU": 2}], 1)
