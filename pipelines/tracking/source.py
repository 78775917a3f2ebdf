"""Which state of this code a run was made with: commit and changes, when it runs from a checkout."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("vast", "preprocessing", "pipelines", "pyproject.toml", "constraints.txt")
MAX_PATCH_BYTES = 1_000_000


def source_tags() -> dict[str, str]:
    """Git commit of this code, and whether it was changed."""
    try:
        _check_own_checkout()
        commit = _git("rev-parse", "HEAD").strip()
        dirty = _git("status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):
        return {"mlflow.source.git.commit": "unknown"}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(dirty)).lower()}


def git_patch() -> str:
    """What tracked files of this code differ in from the commit; empty when in nothing, or when it is no checkout.

    Only the packages themselves: other tracked files, as those of a deployment, may hold what is nobody's business.
    """
    try:
        _check_own_checkout()
        patch = _git("diff", "HEAD", "--no-color", "--no-ext-diff", "--", *CODE)
    except (OSError, subprocess.SubprocessError):
        return ""
    if len(patch) > MAX_PATCH_BYTES:
        patch = f"{patch[:MAX_PATCH_BYTES]}\n... cut here: the whole patch has {len(patch):,} characters\n"
    return patch


def _check_own_checkout() -> None:
    """Raise where this code is not tracked: an installed copy may lie in a checkout of something else."""
    _git("ls-files", "--error-unmatch", "pipelines/tracking/source.py")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, timeout=10, check=True)
    return done.stdout.decode(errors="replace")
