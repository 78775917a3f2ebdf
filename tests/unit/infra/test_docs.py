"""infra's README and runbook: every command can be given, every path exists, every message is one that is printed."""

import ast
import contextlib
import functools
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.config import shipped_recipes

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
PAGES = {name: (INFRA / name).read_text(encoding="utf-8") for name in ("README.md", "RUNBOOK.md")}
COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for text in PAGES.values()
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S)
        for line in block.splitlines()
        if line.strip() and line[0] != "#"
    }
)
KUBECTL = {"apply", "create", "delete", "describe", "drain", "get", "logs", "port-forward"}
# What the pages have of programs that are not here is checked as far as it can be.
PROGRAMS = {"vast", "python", "kubectl", "docker", "ray", "export", "make", "source", "infra/mlflow/serve.sh"}
PROGRAMS |= {"infra/compose.sh", "infra/compose-secrets.sh", "infra/docker/drain-node.sh"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own command line
@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_can_be_given(line):
    for command in line.split(" | "):
        words = shlex.split(command, comments=True)
        assert words[0] in PROGRAMS, command
        if words[0] == "vast" or "--" in words or "exec" in words[:2]:
            check_vast(words[words.index("vast") :] if words[0] != "ray" else shlex.split(words[-1]))
        if words[0] == "python":
            check_script(words[1:])
        elif words[0] == "kubectl":
            rest = words[3:] if words[1] == "--namespace" else words[1:]
            assert rest[0] in KUBECTL, command
        elif words[0] == "docker":
            check_build(words)
        elif words[0] == "ray":
            check_ray(words[1:])
        elif words[0] == "make":
            assert f"\n{words[1]}: " in (ROOT / "Makefile").read_text(encoding="utf-8")
        elif words[0].startswith("infra/"):
            assert (ROOT / words[0]).exists()


def check_vast(words: list[str]) -> None:
    args = cli.parse(words[1:])
    if getattr(args, "recipe", ""):
        assert args.recipe in shipped_recipes()


def check_script(words: list[str]) -> None:
    path = ROOT / words[0]
    assert path.is_file(), path
    if path.name == "render.py":
        given = [sys.executable, str(path), *words[1:]]
        if "--values" in given:  # the reader's own
            place = given.index("--values")
            del given[place : place + 2]
        assert subprocess.run(given, capture_output=True, check=False).returncode == 0
    elif path.name == "apply.py":  # far enough to see that the options are known
        done = subprocess.run([sys.executable, str(path), *words[1:], "--help"], capture_output=True, check=False)
        assert done.returncode == 0


def check_build(words: list[str]) -> None:
    dockerfile = (ROOT / words[words.index("-f") + 1]).read_text()
    for word in words:
        if re.fullmatch(r"[A-Z_]+=\w+", word):
            assert f"ARG {word.partition('=')[0]}" in dockerfile


def check_ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli as ray_cli

    assert words[0] in ray_cli.commands, words
    for word in words:
        if word.startswith("infra/"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_the_paths_it_names_exist(page):
    for path in re.findall(r"`((?:infra|vast|pipelines|kuberay|s3|mlflow|grafana|docker)/[\w/.-]*\w)`", PAGES[page]):
        places = (ROOT / path, INFRA / path)
        made = {"infra/compose.env", "pipelines/README.md"}
        assert path in made or any(place.exists() for place in places), path
    for target in re.findall(r"\]\(([^)#]*)(#[\w-]+)?\)", PAGES[page]):
        if target[0]:
            assert (INFRA / target[0]).exists(), target
        if target[1]:
            text = PAGES[target[0] or page]
            anchors = {
                re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)
            }
            assert target[1][1:] in anchors, target


@functools.cache
def printed() -> str:
    """Every string of our code that may be printed, f-strings with … where they have a value."""
    found = []
    for folder in ("vast", "pipelines", "preprocessing", "infra"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    found += [path.read_text(encoding="utf-8") for path in sorted(INFRA.rglob("*.sh"))]
    return "\n".join(found)


SYMPTOMS = re.findall(r"^\| `([^`]+)` \|", PAGES["RUNBOOK.md"], flags=re.M)


def test_the_table_of_failures_is_long_enough_to_be_of_use():
    assert len(SYMPTOMS) >= 20
    rows = re.findall(r"^\| `.*$", PAGES["RUNBOOK.md"], flags=re.M)
    assert all(len(row.strip("| ").split(" | ")) == 3 for row in rows)


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_every_symptom_is_something_that_is_printed(symptom):
    text = printed()
    pieces = [piece for piece in re.split(r"…", symptom) if len(piece.strip()) > 3]
    assert pieces
    for piece in pieces:
        assert piece in text or piece.strip(" ;") in text, piece


@pytest.mark.parametrize(
    "line", re.findall(r"`(saved at step|the ranks were told to go and have saved)`", PAGES["RUNBOOK.md"])
)
def test_what_the_text_says_is_printed_is_printed(line):
    assert line in printed()


def test_help_of_vast_knows_the_commands_of_the_runbook():
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        cli.parse(["--help"])
    for verb in ("check", "track", "pretrain"):
        assert verb in said.getvalue()
