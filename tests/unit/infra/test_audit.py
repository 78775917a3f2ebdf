"""The audit: what is known fails unless a reason is given, and what could not be looked up is no good news."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
spec = importlib.util.spec_from_file_location("audit", ROOT / "infra" / "audit" / "audit.py")
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

CLEAN = {"name": "good", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3"]}]}
UNKNOWN = {"name": "dark", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("dependencies", "allowed", "code", "says"),
    [
        ([CLEAN], {}, 0, "nothing known"),
        ([CLEAN, BAD], {}, 1, "bad 2: PYSEC-1, fixed in 3"),
        ([CLEAN, BAD], {"CVE-1": "we never call it"}, 0, "nothing known"),
        ([CLEAN], {"CVE-9": "old"}, 0, "CVE-9 concerns nothing here any more"),
        ([CLEAN, UNKNOWN], {}, 3, "NOT audited"),
        ([BAD, UNKNOWN], {}, 1, "PYSEC-1"),
        ([], {}, 3, "NOT audited"),
    ],
)
def test_verdicts(dependencies, allowed, code, says):
    found, lines = audit.judge(dependencies, allowed)
    assert found == code
    assert says in "\n".join(lines)


def test_the_allow_list_needs_reasons(tmp_path):
    path = tmp_path / "allowed.txt"
    path.write_text("# comment\n\nCVE-2026-1  only on Windows\n")
    assert audit.read_allowed(path) == {"CVE-2026-1": "only on Windows"}
    path.write_text("CVE-2026-1\n")
    with pytest.raises(ValueError, match=r"allowed\.txt:1: expected"):
        audit.read_allowed(path)


def test_the_shipped_allow_list_is_well_formed():
    audit.read_allowed(ROOT / "infra" / "audit" / "allowed.txt")


@pytest.mark.slow
def test_the_bill_of_materials_has_every_installed_package_and_is_valid(tmp_path):
    out = tmp_path / "sbom.json"
    words = [
        "-m",
        "cyclonedx_py",
        "environment",
        "--pyproject",
        "pyproject.toml",
        "--output-reproducible",
        "--validate",
    ]
    done = subprocess.run(
        [sys.executable, *words, "-o", str(out), sys.executable], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    bill = json.loads(out.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "vast-video"
    there = {(one["name"].lower().replace("_", "-").replace(".", "-"), one["version"]) for one in bill["components"]}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for name in ("ray", "mlflow", "safetensors", "boto3", "pydantic"):
        assert (name, pinned[name]) in there
