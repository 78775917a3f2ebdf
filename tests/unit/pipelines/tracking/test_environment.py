import json
import os
import subprocess

from pipelines.tracking import environment, source
from pipelines.tracking.environment import write_environment


def test_the_environment_names_software_and_hardware_and_nothing_private(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2-very-secret")
    write_environment(tmp_path, num_nodes=3)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["nodes"] == 3
    assert found["packages"]["torch"].startswith("2.")
    assert found["cpus"] == os.cpu_count()
    assert found["memory_bytes"] > 2**28
    lines = (tmp_path / "packages.txt").read_text().splitlines()
    assert any(line.startswith("mlflow==") for line in lines)
    assert all("==" in line and "/" not in line for line in lines)
    text = "".join(path.read_text() for path in tmp_path.glob("*.[jt]*"))
    for private in ("hunter2", os.uname().nodename, str(tmp_path.home())):
        assert private not in text


def test_gpus_are_read_from_nvidias_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (gpu,) = environment.environment(1)["gpus"]
    assert gpu == {"name": "NVIDIA H100 80GB HBM3", "memory.total": "81559 MiB", "driver_version": "550.54.15"}


def checkout(folder):
    (folder / "pipelines" / "tracking").mkdir(parents=True)
    (folder / "infra").mkdir()
    (folder / "pipelines" / "tracking" / "source.py").write_text("a = 1\n")
    (folder / "infra" / "values.yaml").write_text("password: x\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True)


def test_the_patch_has_what_changed_in_tracked_code_and_nothing_else(tmp_path, monkeypatch):
    checkout(tmp_path)
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(source, "CODE", ("pipelines",))
    assert source.git_patch() == ""
    assert source.source_tags()["git.dirty"] == "false"
    (tmp_path / "infra" / "values.yaml").write_text("password: changed\n")
    (tmp_path / "pipelines" / "secret.py").write_text("untracked = True\n")
    (tmp_path / "pipelines" / "tracking" / "source.py").write_text("a = 2\n")
    patch = source.git_patch()
    assert "-a = 1\n+a = 2\n" in patch
    assert "password" not in patch
    assert "untracked" not in patch
    assert source.source_tags()["git.dirty"] == "true"
    (tmp_path / "pipelines" / "tracking" / "source.py").write_text("a = 2\n" * 300_000)
    assert len(source.git_patch()) < 1_000_100
    assert "cut here" in source.git_patch()


def test_code_that_is_not_tracked_tells_nothing_of_the_checkout_around_it(tmp_path, monkeypatch):
    checkout(tmp_path)
    inside = tmp_path / "site-packages"
    inside.mkdir()
    monkeypatch.setattr(source, "ROOT", inside)
    assert source.source_tags() == {"mlflow.source.git.commit": "unknown"}
    assert source.git_patch() == ""
