"""A raylet that dies is noticed in time: later Ray ends its driver without a word. One that never began is replaced."""

import os
import subprocess
import sys
import textwrap

import pytest

SCRIPT = textwrap.dedent(
    """
    import signal, threading, time
    import psutil, ray
    from pipelines.training.fit import Raylet, _answer
    from pipelines.training.supervise import SessionLost

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)

    class Board:
        def __init__(self):
            time.sleep(60)  # it is still being started

        def take(self):
            return []

    board = ray.remote(num_cpus=0)(Board).remote()
    (process,) = [child for child in psutil.Process().children() if child.name() == "raylet"]
    threading.Timer(1.0, process.send_signal, [signal.SIGKILL]).start()
    begun = time.monotonic()
    with Raylet() as raylet:
        try:
            _answer(board.take.remote, raylet)
        except SessionLost:
            print(f"left after {time.monotonic() - begun:.1f} s", ray.is_initialized())
    """
)


def test_a_raylet_that_dies_while_the_board_is_started_is_noticed():
    # In a process of its own, since Ray would end it if this failed. The GCS takes more than ten seconds to notice.
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("left after")]  # Ray has its own to say
    *_, seconds, _, connected = line.split()
    assert float(seconds) < 8
    assert connected == "False"


SLOW_AGENT = textwrap.dedent(
    """
    import os, sys, time

    if any(word.endswith("agent.py") for word in sys.orig_argv) and not os.path.exists(os.environ["SLOW_ONCE"]):
        open(os.environ["SLOW_ONCE"], "w").close()
        time.sleep(20)
    """
)


@pytest.mark.campaign
def test_a_raylet_whose_agent_is_too_slow_to_start_is_started_again(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENT)
    code = "from pipelines.training.launch import connect; connect(None); import ray; print(ray.is_initialized())"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "SLOW_ONCE": str(tmp_path / "was slow")}
    environment.pop("RAY_ADDRESS", None)
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "True"
    assert (tmp_path / "was slow").exists()
