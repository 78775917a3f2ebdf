from pipelines.config import absolute


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("runs") == str(tmp_path / "runs")
    assert absolute("s3://bucket/runs") == "s3://bucket/runs"
    assert absolute("") == ""
