"""No file of ours calls what runs code that came with data: unpickling, a shell, unsafe YAML, blind unpacking."""

import ast
from pathlib import Path

import pytest
import yaml

from pipelines.config import _Loader

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("vast", "preprocessing", "pipelines", "infra", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load",
    "cloudpickle.loads", "joblib.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all",
    "shutil.unpack_archive", "subprocess.getoutput", "subprocess.getstatusoutput", "marshal.loads", "shelve.open",
}  # fmt: skip
SAFE_LOADERS = {"_Loader", "yaml.SafeLoader", "yaml.CSafeLoader"}


def faults(source: str) -> list[str]:
    """Calls in a source text that nobody should make, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "cloudpickle", "joblib", "marshal"):
            found.append(f"{node.lineno}: from {node.module} import")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("pipe:"):
            found.append(f"{node.lineno}: pipe:")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {one.arg: ast.unparse(one.value) for one in node.keywords if one.arg}
        words = [ast.unparse(one) for one in node.args]
        bad = name in FORBIDDEN or name.endswith((".extractall", ".allow_pickle"))
        bad |= name == "torch.load" and given.get("weights_only") != "True"
        bad |= name == "yaml.load" and (given.get("Loader") or words[-1]) not in SAFE_LOADERS
        bad |= given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False"
        bad |= name.endswith(".decode") and "WebDataset" in name
        if bad:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_that_runs_what_came_with_data(path):
    allowed = {"vast/storage.py": 1}  # it refuses pipe: URLs
    assert len(faults(path.read_text(encoding="utf-8"))) == allowed.get(str(path.relative_to(ROOT)), 0), faults(
        path.read_text(encoding="utf-8")
    )


def test_the_recipes_loader_is_the_safe_one():
    assert issubclass(_Loader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        yaml.load("!!python/object/apply:os.system ['true']", _Loader)


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "subprocess.run(words, shell=True)",
        "tarfile.open(path).extractall(folder)",
        "np.load(path, allow_pickle=True)",
        "pickle.loads(data)",
        "from pickle import loads",
        "wds.WebDataset('pipe:curl x')",
        "eval(text)",
    ],
)
def test_the_rule_bites(line):
    assert faults(line)
