"""Whether figures would arrive: the tracking server answers, knows us and lets us write."""

import os
import time
from pathlib import Path

from pipelines import tracking
from pipelines.preflight.findings import Findings, Problem
from vast.errors import UserError


def check_tracking(findings: Findings) -> None:
    """Write a tag onto the experiment that runs will go into, which is made if it is not there."""
    uri = tracking.tracking_uri()
    if uri.startswith("sqlite:///"):  # made by the first run, which takes seconds
        folder = Path(uri.removeprefix("sqlite:///")).parent
        if os.access(folder, os.W_OK):
            findings.say("tracking", f"{uri}: a local file; set MLFLOW_TRACKING_URI to share runs")
        else:
            advice = "Set MLFLOW_TRACKING_URI, or stand in another folder"
            findings.add([Problem("tracking", uri, f"the folder {folder} cannot be written", advice)])
        return
    begun = time.perf_counter()
    try:
        experiment = tracking.touch_experiment(uri)
    except UserError as error:
        subject, _, text = str(error).partition(": ")
        found, _, advice = text.partition("; ")
        findings.add([Problem("tracking", f"{subject} {uri}", found[:300], f"{advice[:1].upper()}{advice[1:]}")])
        return
    findings.say("tracking", f"{uri}: experiment {experiment!r} can be written, in {time.perf_counter() - begun:.1f} s")
