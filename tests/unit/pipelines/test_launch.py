import pytest

from pipelines.config import absolute
from pipelines.launch import scaling_for
from vast.errors import UserError


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
    scaling = scaling_for(ranks, resources, readers)
    assert (scaling["num_workers"], scaling["use_gpu"], scaling["resources_per_worker"]) == expected


@pytest.mark.parametrize(
    ("ranks", "resources", "readers", "most"),
    [(3, {"CPU": 2}, 0, 2), (9, {"CPU": 64, "GPU": 8}, 1, 8), (8, {"CPU": 8, "GPU": 8}, 1, 4)],
)
def test_ranks_that_can_never_be_placed_are_refused(ranks, resources, readers, most):
    with pytest.raises(UserError, match=rf"--ranks: {ranks} ranks .* use --ranks {most}"):
        scaling_for(ranks, resources, readers)


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("runs") == str(tmp_path / "runs")
    assert absolute("s3://bucket/runs") == "s3://bucket/runs"
    assert absolute("") == ""
