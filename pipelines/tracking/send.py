"""The process that sends to MLflow what another one logs, for as long as that lives.

    python -m pipelines.tracking.send RUN FLUSH_EVERY_S WRITER    the run as JSON; the id of the process that logs

Standard input ends when the process that logs closes it or dies in whatever way. Then everything that this one left on
disk is sent, and this process ends.
"""

import contextlib
import json
import select
import sys
import time

from pipelines.tracking.delivery import RETRY_S, Delivery
from pipelines.tracking.runs import RunRef
from pipelines.tracking.spool import Spool

DYING_S = 30.0  # a process with GPUs takes seconds to die, and to let go of its files


def main() -> None:
    """Send until standard input ends, and then once more."""
    run, flush_every_s, writer = RunRef(**json.loads(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3])
    spool = Spool(run)
    delivery = Delivery(spool)
    with contextlib.suppress(Exception):  # send() says what is the matter
        delivery.client()  # now, while the ranks are still starting: seconds of a core, which steps might miss
    wait_s = 0.0
    while not select.select([sys.stdin], [], [], wait_s)[0]:
        wait_s = flush_every_s if delivery.send() else RETRY_S
    deadline = time.monotonic() + DYING_S
    while spool.is_written_by(writer) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = True
    while left and delivery.send():
        delivery.close()
        # added, as the end of a run whose rank was killed, by one who found this process sending and left it to it
        left = bool(spool.segments() or spool.deferred())
    delivery.close()


if __name__ == "__main__":
    main()
