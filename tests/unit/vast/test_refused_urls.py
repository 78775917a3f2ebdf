"""URLs that would carry a password into logs, or run a program, are refused; the message never repeats them."""

import pytest

from pipelines.tracking.runs import tracking_uri
from vast.errors import UserError
from vast.storage import open_store, refuse_password

SECRET = "hunter2-planted"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:{SECRET}@bucket/prefix",
        f"s3://AKIA:{SECRET}/with/slash@bucket/prefix",
        f"http://me:{SECRET}@host/data",
        f"https://{SECRET}@host:443/data",
        f"postgresql+psycopg://me:{SECRET}@host:5432/db",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    for call in (lambda: open_store(url), tracking_uri):
        with pytest.raises(UserError, match="user or password") as caught:
            call()
        assert SECRET not in str(caught.value)


def test_a_password_in_the_stores_endpoint_is_refused(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET}@127.0.0.1:8333")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL") as caught:
        open_store("s3://bucket/prefix")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://bucket/a@b:c", "http://[::1]:5000", "http://host:5000/x", "sqlite:////tmp/a@b:c.db", "folder/a@b", ""]
)
def test_other_urls_are_let_through(url):
    refuse_password(url, "a URL", "")


def test_a_url_that_would_run_a_program_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="would run a program"):
        open_store("pipe:touch made")
    assert not (tmp_path / "made").exists()
