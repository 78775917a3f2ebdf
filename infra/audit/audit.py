"""Ask for known vulnerabilities in the pinned packages (constraints.txt); `make audit`.

    python infra/audit/audit.py

Exit code 0: every package was looked up, and nothing is known that allowed.txt does not give a reason for. 1: something
is known. 2: allowed.txt is wrong. 3: not every package could be looked up, no good news; often the database cannot
be reached. pip-audit alone calls that "no known vulnerabilities" when an index answers without having the data.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PINNED = HERE.parents[1] / "constraints.txt"
_ENTRY = re.compile(r"((?:PYSEC|GHSA|CVE)-\S+)\s+(\S.*)")


def read_allowed(path: Path) -> dict[str, str]:
    """Advisory ids and why each may pass.

    Raises:
        ValueError: a line without an id or without a reason.
    """
    allowed = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            found = _ENTRY.fullmatch(line.strip())
            if found is None:
                raise ValueError(f"{path}:{number}: expected an advisory's id and a reason, found {line!r}")
            allowed[found[1]] = found[2]
    return allowed


def judge(dependencies: list[dict[str, Any]], allowed: dict[str, str]) -> tuple[int, list[str]]:
    """The exit code and what to say of pip-audit's list."""
    lines, known, used = [], 0, set()
    for one in dependencies:
        for found in one.get("vulns", []):
            names = {found["id"], *found.get("aliases", [])}
            if passed := names & set(allowed):
                used |= passed
                continue
            known += 1
            fixed = ", ".join(found.get("fix_versions", [])) or "no version yet"
            lines.append(f"{one['name']} {one['version']}: {found['id']}, fixed in {fixed}")
    skipped = sorted(one["name"] for one in dependencies if "skip_reason" in one)
    if skipped:
        some = ", ".join(skipped[:5])
        lines.append(f"{len(skipped)} of {len(dependencies)} packages could not be looked up ({some} ...)")
    lines += [f"allowed.txt: {name} concerns nothing here any more: remove it" for name in sorted(set(allowed) - used)]
    if known:
        return 1, lines
    if skipped or not dependencies:
        return 3, [*lines, "the packages are NOT audited: the vulnerability database could not be asked"]
    return 0, [*lines, f"{len(dependencies)} packages, nothing known against them"]


def main() -> int:
    """Audit, and say what was found."""
    try:
        allowed = read_allowed(HERE / "allowed.txt")
    except ValueError as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "pip_audit", "-r", str(PINNED), "--no-deps", "--disable-pip", "-f", "json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=600, check=False
        )
        dependencies = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print("audit: no answer in ten minutes; the packages are NOT audited", file=sys.stderr)
        return 3
    except (json.JSONDecodeError, KeyError):
        print(f"audit: the packages are NOT audited:\n{done.stderr.strip()[-2000:]}", file=sys.stderr)
        return 3
    code, lines = judge(dependencies, allowed)
    print("\n".join(f"audit: {line}" for line in lines), file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
