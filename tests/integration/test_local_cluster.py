"""`make cluster-up`: training across its two nodes, what listens where, what stands where, and that nothing is left."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.stack
ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "infra" / "local" / "cluster.py"
MARK = "VAST_LOCAL_CLUSTER"
SMALL = "model.name=vast_micro data.num_frames=4 data.crop_size=32 data.eval_short_side=32 data.num_readers=0 "
SMALL += "optim.global_batch=8 optim.epochs=1 optim.precision=fp32 data.url=s3://vast/ssv2 --output s3://vast/runs"
URL_SECRET = "planted-in-a-url-7f3a"
SECRET_FILES = {"secrets.json", "s3_identities.json", "env", "ray_token"}


def cluster(folder: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the program as `make` does, on two cores, so that each node has one."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    return subprocess.run(
        [sys.executable, str(PROGRAM), "--folder", str(folder), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def processes_of(folder: Path) -> dict[int, str]:
    """Every process of the cluster in a folder, and which part it is of."""
    mark = json.loads((folder / "state.json").read_text())["mark"] if (folder / "state.json").exists() else "none"
    return marked(mark)


def marked(mark: str) -> dict[int, str]:
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            value = process.environ().get(MARK, "")
            if value.startswith(f"{mark}:"):
                found[process.pid] = value.partition(":")[2]
    return found


@dataclass
class Watch:
    """Looks at the cluster's processes while it works: who listens beyond the loopback, where ranks are."""

    folder: Path
    rank_nodes: set[str] = field(default_factory=set)
    listening: set[tuple[str, str]] = field(default_factory=set)
    looks: int = 0
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            self.looks += 1
            for pid, part in processes_of(self.folder).items():
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    title = process.name()
                    if title.startswith("ray::RayTrainWo"):
                        self.rank_nodes.add(part)
                    for one in process.net_connections("inet"):
                        if one.status == psutil.CONN_LISTEN:
                            self.listening.add((title, one.laddr.ip))


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("local") / "cluster"
    done = cluster(folder, "up")
    assert done.returncode == 0, done.stdout + done.stderr
    yield folder
    cluster(folder, "down")


def shell(folder: Path, work: Path, line: str) -> "subprocess.CompletedProcess[str]":
    """Run a `vast` command as somebody who has sourced the environment file."""
    line = line.replace("vast ", f"{shlex.quote(sys.executable)} -m pipelines.cli ", 1)
    return subprocess.run(
        ["bash", "-c", f"source {shlex.quote(str(folder / 'env'))} && {line}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "VAST_SPOOL": str(work / "spool"), "HOME": str(work / "home")},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def files_with(secrets: dict[str, str], *folders: Path) -> list[str]:
    """Files in which a secret stands."""
    wanted = {name: text.encode() for name, text in secrets.items()}
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                found += [f"{name} in {path}" for name, text in wanted.items() if text in content]
    return found


def test_training_across_both_nodes_leaves_no_secret_and_listens_on_the_loopback(up, tmp_path):
    for path in SECRET_FILES:
        assert (up / path).stat().st_mode & 0o777 == 0o600, path
    again = cluster(up, "up")
    assert again.returncode == 0, again.stderr
    assert "already up" in again.stdout
    state = json.loads((up / "state.json").read_text())
    (tmp_path / "home").mkdir()
    said: dict[str, str] = {}
    lines = [
        "vast synth ssv2 --out raw --train 16 --val 8 --workers 1",
        "vast shard ssv2 --annotations raw/labels --videos raw/20bn-something-something-v2 --out s3://vast/ssv2 "
        "--short-side 64 --samples-per-shard 8",
        f"vast pretrain finetune_ssv2_vast_ti_8f {SMALL} --ranks 2",
        f"vast search demo_search {SMALL} search.num_trials=2",
        "vast evaluate RUN --data s3://vast/ssv2",
        # the largest: some of the generated files are empty, as in the published set
        'vast predict RUN "$(ls -S raw/20bn-something-something-v2/*.webm | head -1)" --json',
        "vast report RUN --out report.html",
    ]
    mistakes = {
        "vast pretrain finetune_ssv2_vast_ti_8f data.url=s3://vast/absent --output s3://vast/runs": 2,
        f"vast pretrain finetune_ssv2_vast_ti_8f data.url=s3://me:{URL_SECRET}@vast/ssv2": 2,
        f"vast pretrain finetune_ssv2_vast_ti_8f {SMALL} --output http://me:{URL_SECRET}@x": 2,
        f"MLFLOW_TRACKING_URI=http://me:{URL_SECRET}@127.0.0.1:9 {sys.executable} -m pipelines.cli pretrain "
        f"finetune_ssv2_vast_ti_8f optim.lr=3e-4 {SMALL}": 2,
        "vast pretrain finetune_ssv2_vast_ti_8f 'data.url=pipe:touch made'": 2,
    }
    run = "not trained yet"
    with Watch(up) as watch:
        for line in lines:
            done = shell(up, tmp_path, line.replace("RUN", run))
            verb = line.split()[1]
            assert done.returncode == 0, f"{line}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
            said[verb] = done.stdout + done.stderr
            if found := re.search(r"^model +(s3://vast/runs/[^/]+)/model$", done.stdout, flags=re.M):
                run = found[1]
    for number, (line, code) in enumerate(mistakes.items()):
        done = shell(up, tmp_path, line)
        said[f"mistake {number}"] = done.stdout + done.stderr
        assert done.returncode == code, f"{line}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()
    assert "on 2 rank(s)" in said["pretrain"]
    assert watch.looks > 10
    assert watch.rank_nodes == {"ray-head", "ray-worker"}
    outside = {(name, ip) for name, ip in watch.listening if ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")}
    # torch's rendezvous of the ranks, which knows no address: while a run of several ranks lasts, see SECURITY.md
    assert {name for name, _ in outside if not name.startswith("ray::")} == set(), outside
    # the system keeps fifteen letters of a name, and psutil the rest while it can
    assert all(name.startswith("ray::RayTrainWo") for name, _ in outside), outside
    assert {"weed", "gcs_server", "raylet"} <= {name for name, _ in watch.listening}

    (tmp_path / "said.json").write_text(json.dumps(said))
    secrets = json.loads((up / "secrets.json").read_text())
    assert set(secrets) == {"s3_access_key", "s3_secret_key", "mlflow_password", "mlflow_key", "ray_token"}
    planted = {**{name: secrets[name] for name in secrets if name != "s3_access_key"}, "url": URL_SECRET}
    found = files_with(planted, tmp_path, up, Path(state["ray_folder"]))
    assert [one for one in found if Path(one.rpartition(" in ")[2]).name not in SECRET_FILES] == []
    assert len(found) >= 4, "the search finds what stands in the secret files"


def test_a_part_that_died_is_mended_and_down_stops_exactly_what_was_started(up, tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        mark = json.loads((up / "state.json").read_text())["mark"]
        for pid, part in processes_of(up).items():
            if part == "store":
                psutil.Process(pid).kill()
        deadline = time.monotonic() + 20
        while (status := cluster(up, "status")).returncode == 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert status.returncode == 1
        assert "died" in status.stdout
        mended = cluster(up, "up")
        assert mended.returncode == 0, mended.stdout + mended.stderr
        assert "store has died" in mended.stdout
        assert "starting mlflow" not in mended.stdout
        assert cluster(up, "status").returncode == 0

        ray_folder = Path(json.loads((up / "state.json").read_text())["ray_folder"])
        down = cluster(up, "down")
        assert down.returncode == 0, down.stderr
        assert marked(mark) == {}
        assert not ray_folder.exists()
        assert not (up / "env").exists()
        assert (up / "data" / "s3").exists()
        assert any((up / "logs" / "ray").iterdir())
        again = cluster(up, "down")
        assert (again.returncode, "no local cluster is up" in again.stdout) == (0, True)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_cluster_that_cannot_start_is_taken_down_and_says_why(tmp_path):
    folder = tmp_path / "cluster"
    done = cluster(folder, "up", VAST_CLUSTER_START_LIMIT_S="0.2")
    assert done.returncode == 1
    assert "store did not answer in 0 s; its log" in done.stderr
    assert "everything that was started is stopped again" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "state.json").exists()
    alive = [process for process in psutil.process_iter(["name", "status"]) if process.info["name"] == "weed"]
    folders = [process.cwd() for process in alive if process.info["status"] != psutil.STATUS_ZOMBIE]
    assert str(folder / "data") not in folders


def test_a_process_that_was_given_an_old_id_is_left_alone(tmp_path):
    """As after a restart of the machine: the record names an id that now belongs to somebody else."""
    somebody = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        created = psutil.Process(somebody.pid).create_time()
        folder = tmp_path / "cluster"
        folder.mkdir()
        started = {"store": {"pid": somebody.pid, "created": created - 1000.0}}
        state = {"mark": "another", "ports": {"s3": 1, "mlflow": 2, "gcs": 3, "dashboard": 4, "worker_manager": 5}}
        (folder / "state.json").write_text(json.dumps({**state, "ray_folder": "", "started": started}))
        assert "died" in cluster(folder, "status").stdout
        assert cluster(folder, "down").returncode == 0
        assert somebody.poll() is None
    finally:
        somebody.kill()
        somebody.wait()
