"""The Dockerfile without Docker: hadolint's rules, and what it copies, installs and leaves out."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import decord
import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text()
# one line an instruction
INSTRUCTIONS = [line for line in re.sub(r"\\\n", " ", TEXT).splitlines() if line and line[0] != "#"]


def program(name: str) -> str:
    path = shutil.which(name, path=str(Path(sys.executable).parent))
    assert path, f"{name} comes with pip install -e '.[dev]'"
    return path


def test_hadolint_has_nothing_to_say():
    done = subprocess.run([program("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_say_something(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text(
        TEXT.replace("FROM python:${PYTHON_VERSION}-slim-${DEBIAN_RELEASE} AS build", "FROM python AS build")
    )
    done = subprocess.run([program("hadolint"), bad], capture_output=True, text=True, check=False)
    assert "DL3006" in done.stdout


def copied() -> list[tuple[str, str]]:
    """(stage or empty, source) of every COPY."""
    found = []
    for line in INSTRUCTIONS:
        words = line.split()
        if words[0] == "COPY":
            stage = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), "")
            found += [(stage, word) for word in words[1:-1] if not word.startswith("--")]
    return found


def test_what_is_copied_is_there_and_not_ignored():
    stages = {line.split()[-1] for line in INSTRUCTIONS if line.startswith("FROM ")}
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [(stage, source) for stage, source in copied()]
    assert len(sources) >= 10
    for stage, source in sources:
        if stage:
            assert stage in stages
            continue
        assert (ROOT / source).exists(), source
        assert any(source == one or source.startswith(f"{one}/") for one in allowed), (
            f".dockerignore leaves {source} out"
        )


def test_every_package_of_the_project_is_in_the_image():
    assert {"vast", "preprocessing", "pipelines"} <= {source for _, source in copied()}


def test_the_builder_is_sent_nothing_else():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    assert lines[-1] == "**/*.env"


def test_the_last_stage_is_small_unprivileged_and_has_no_secret():
    last = INSTRUCTIONS[max(i for i, line in enumerate(INSTRUCTIONS) if line.startswith("FROM ")) :]
    assert [line for line in last if line.startswith("USER ")] == ["USER 1000:1000"]
    assert last[-1].startswith("CMD ")
    assert not any("pip install" in line for line in last), "what is installed comes from the build stage"
    assert not re.search(r"(?i)(ARG|ENV)[^\n]*(token|secret|password|_key)", TEXT)


def test_everything_is_installed_by_the_pins():
    installs = [found for line in INSTRUCTIONS for found in re.findall(r"(?:uv )?pip install [^;&]*", line)]
    assert len(installs) == 5
    for install in installs:
        assert "constraints.txt" in install or '"$torch+cpu"' in install, install


def test_paths_of_the_image_that_others_name_are_made_by_it():
    made = {"/opt/vast/venv", "/opt/vast/mlflow", "/opt/vast/s3", "/opt/vast/drain-node.sh", "/opt/vast/aws-secrets.sh"}
    for name in ("compose.yaml", "ray-aws.yaml", "kuberay/pods.py"):
        for path in re.findall(r"/opt/vast/[\w/.-]+", (ROOT / "infra" / name).read_text()):
            assert any(path == one or path.startswith(f"{one}/") for one in made), f"{name}: {path}"
            below = path.removeprefix("/opt/vast/")
            assert any((ROOT / "infra" / folder / below).exists() for folder in ("", "docker")), path


# What Python's slim image brings: glibc, the compiler's runtime, zlib. The container toolkit mounts the driver.
IN_THE_IMAGE = re.compile(
    r"ld-linux-.*|lib(c|dl|m|mvec|pthread|resolv|rt|util|gcc_s|stdc\+\+|z|cuda|nvidia-ml)\.so\.\d+"
)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf: apt-get install binutils")
def test_wheels_ask_the_system_for_nothing_that_the_image_lacks():
    root = Path(decord.__file__).parents[1]
    # NVIDIA's own have plug-ins for networks, which are loaded where there are such
    libraries = [path for path in root.rglob("*.so*") if path.is_file() and "nvidia" not in path.parts]
    shipped = {path.name for path in libraries}
    asked: set[str] = set()
    for first in range(0, len(libraries), 200):
        words = ["readelf", "--dynamic", "--wide", *map(str, libraries[first : first + 200])]
        said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        asked |= set(re.findall(r"\(NEEDED\).*\[(.+)\]", said))
    assert "libc.so.6" in asked
    assert not {name for name in asked - shipped if not IN_THE_IMAGE.fullmatch(name)}
