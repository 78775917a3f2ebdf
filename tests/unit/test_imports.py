"""The house's import rules: imports read downward, heavy libraries stay at the edge."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("vast", "preprocessing", "pipelines")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Beginning of a module's name -> what it may import of ours, and which libraries it may never import.
# The longest beginning counts.
RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "vast.errors": ((), ("torch", "ray", "mlflow", "boto3")),
    "vast.storage": (("vast.errors", "vast.storage_s3"), ("torch", "ray", "mlflow")),
    "vast.storage_s3": (("vast.errors", "vast.storage", "vast.storage_s3_requests"), ("torch", "ray", "mlflow")),
    "vast.storage_s3_requests": (("vast.errors", "vast.storage_s3_presigned"), ("torch", "ray", "mlflow")),
    "vast.storage_s3_presigned": ((), ("torch", "ray", "mlflow")),
    "vast.dataset_format": (("vast.errors", "vast.storage"), ("torch", "ray", "mlflow", "pyarrow")),
    "vast.remote_parquet": (("vast.storage",), ("torch", "ray", "mlflow")),
    "vast.sample_index": (
        ("vast.errors", "vast.storage", "vast.dataset_format", "vast.remote_parquet"),
        ("torch", "ray", "mlflow"),
    ),
    "vast.shard_writer": (("vast.dataset_format",), ("torch", "ray", "mlflow", "pyarrow")),
    "vast.models": (("vast.errors", "vast.models"), ("ray", "mlflow", "boto3", "decord")),
    "vast.data": (
        ("vast.errors", "vast.storage", "vast.dataset_format", "vast.sample_index", "vast.data"),
        ("ray", "mlflow", "boto3"),
    ),
    "vast": (("vast",), ("ray", "mlflow")),
    "preprocessing": (
        (
            "preprocessing",
            "vast.storage",
            "vast.dataset_format",
            "vast.sample_index",
            "vast.shard_writer",
            "vast.errors",
        ),
        ("torch", "mlflow"),
    ),
    "pipelines": (("pipelines", "preprocessing", "vast"), ()),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def begins(name: str, beginning: str) -> bool:
    return name == beginning or name.startswith(f"{beginning}.")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rule_of(module: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return RULES[max((key for key in RULES if begins(module, key)), key=len)]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_read_downward(path: Path):
    allowed, forbidden = rule_of(module_name(path))
    for name in imported(path):
        if name.split(".")[0] in PACKAGES:
            assert any(begins(name, part) for part in allowed), f"{module_name(path)} must not import {name}"
        assert not any(begins(name, library) for library in forbidden), f"{module_name(path)} must not import {name}"


def test_only_the_shard_runner_and_pipelines_know_ray():
    knows = {module_name(p) for p in FILES if any(begins(name, "ray") for name in imported(p))}
    assert {name for name in knows if not begins(name, "pipelines")} <= {"preprocessing.ray_runner"}


def test_the_rule_bites(tmp_path: Path):
    assert not any(begins("vast.train.loop", part) for part in rule_of("preprocessing.write")[0])
    assert any(begins("ray.train", library) for library in rule_of("vast.train.loop")[1])


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vast", ["torch", "numpy", "boto3", "pydantic"]),
        ("vast.dataset_format", ["torch", "ray", "mlflow", "pyarrow"]),
        ("vast.sample_index", ["torch", "ray", "mlflow"]),
        ("preprocessing.build", ["torch", "ray", "mlflow"]),
        ("vast.train.config", ["torch", "ray", "mlflow", "decord"]),
        ("pipelines.cli", ["torch", "ray", "mlflow", "av"]),
        ("pipelines.tracking.send", ["torch", "ray", "mlflow"]),
        ("pipelines.search.trial", ["mlflow"]),  # and pipelines.training.worker, which it imports: what ranks run
    ],
)
def test_a_light_module_loads_no_heavy_library(module: str, absent: list[str]):
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_top_level_folder_says_what_lives_there():
    for folder in (*PACKAGES, "infra", "tests", "benchmarks"):
        assert (ROOT / folder / "README.md").is_file(), f"{folder}/README.md is missing"


BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))

# One process for all, as each would load torch again.
HELP_OF_ALL = """
import contextlib, io, json, runpy, sys

said = {}
sys.path.insert(0, sys.argv[1])
for path in sys.argv[2:]:
    sys.argv = [path, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            assert not end.code, f"{path}: {end.code}"
    said[path] = out.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def help_of_benchmarks() -> dict[str, str]:
    words = [sys.executable, "-c", HELP_OF_ALL, str(ROOT / "benchmarks"), *map(str, BENCHMARKS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_says_what_it_measures_and_has_a_quick_form(path: Path, help_of_benchmarks: dict[str, str]):
    assert f"`{path.name}`" in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert help_of_benchmarks[str(path)].startswith(f"usage: {path.name}")
    assert "--quick" in help_of_benchmarks[str(path)]
