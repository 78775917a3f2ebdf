"""The driver leaves in time when its raylet dies: later Ray ends it without a word."""

import subprocess
import sys
import textwrap

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
