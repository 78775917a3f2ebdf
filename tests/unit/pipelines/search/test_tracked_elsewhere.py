"""A campaign's folder says where it is tracked; whoever made it must not choose where a password is sent."""

from pathlib import Path

import pytest

from pipelines.search.runs import check_tracking
from pipelines.tracking import RunRef
from vast.errors import UserError


@pytest.mark.parametrize(
    "uri", ["http://stranger:5000", "postgresql://stranger/db", "sqlite:////nowhere/mlflow.db", ""]
)
def test_another_server_is_refused_and_both_are_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ours:5000")
    with pytest.raises(UserError, match="http://ours:5000") as caught:
        check_tracking("s3://b/campaign", RunRef(uri, "a" * 32))
    assert f"tracked in {uri}," in str(caught.value)


def test_ours_and_a_database_that_is_there_are_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ours:5000")
    (tmp_path / "mlflow.db").touch()
    for uri in ("http://ours:5000", f"sqlite:///{tmp_path}/mlflow.db"):
        check_tracking("s3://b/campaign", RunRef(uri, "a" * 32))
