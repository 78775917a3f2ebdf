import pytest

from pipelines.registry.served_model import ROOTS, _bytes_of
from vast.errors import UserError


def test_bytes_need_no_leave(monkeypatch):
    monkeypatch.delenv(ROOTS, raising=False)
    assert _bytes_of({"video": b"abc", "path": None}) == b"abc"


@pytest.mark.parametrize("allowed", ["", "{root}/open", "{root}/open,s3://bucket/videos"])
def test_a_server_reads_only_what_it_may(tmp_path, monkeypatch, allowed):
    (tmp_path / "open").mkdir()
    (tmp_path / "open-secrets").mkdir()
    for name in ("open/a.mp4", "open-secrets/b.mp4"):
        (tmp_path / name).write_bytes(b"abc")
    (tmp_path / "open" / "link.mp4").symlink_to(tmp_path / "open-secrets" / "b.mp4")
    monkeypatch.setenv(ROOTS, allowed.format(root=tmp_path))
    refused = ["/etc/passwd", f"{tmp_path}/open/../open-secrets/b.mp4", f"{tmp_path}/open-secrets/b.mp4"]
    refused += [f"{tmp_path}/open/link.mp4", "s3://other/x.mp4", "s3://bucket/videos/../x.mp4", "file:///etc/passwd"]
    for path in refused:
        with pytest.raises(UserError, match="this server reads no such place"):
            _bytes_of({"path": path})
    if allowed:
        assert _bytes_of({"path": f"{tmp_path}/open/a.mp4"}) == b"abc"


def test_a_row_without_a_video_is_told():
    with pytest.raises(UserError, match="needs the bytes of a video"):
        _bytes_of({"video": None, "path": None})
