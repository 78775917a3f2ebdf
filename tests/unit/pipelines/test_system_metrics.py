import os
import time

from pipelines.system_metrics import SystemMetrics, gpus
from pipelines.tracking import RunRef


class Heard:
    def __init__(self):
        self.calls = []

    def log(self, step, figures):
        self.calls.append((step, dict(figures)))


def test_the_machines_load_is_logged_by_the_second_of_the_run(monkeypatch):
    monkeypatch.setattr("pipelines.system_metrics.gpus", dict)
    heard = Heard()
    created_ms = int((time.time() - 1000) * 1000)
    sampler = SystemMetrics(RunRef("", "0" * 32, created_ms=created_ms), heard, every_s=0.1)
    time.sleep(0.6)
    sampler.close()
    assert not sampler.thread.is_alive()
    count = len(heard.calls)
    assert 2 <= count <= 6
    step, figures = heard.calls[0]
    assert 1000 <= step <= 1003
    assert 0 <= figures["system/cpu_utilization_percentage"] <= 100
    assert figures["system/system_memory_usage_megabytes"] > 100
    assert figures["system/network_receive_megabytes"] >= 0
    assert "system/disk_available_megabytes" in figures


def test_gpus_are_read_from_nvidias_tool_as_far_as_it_tells(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '93, 1000, 412.5\\n7, 10, [N/A]\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = gpus()
    assert found["gpu_0_utilization_percentage"] == 93
    assert found["gpu_0_memory_usage_megabytes"] == 1048.576
    assert found["gpu_0_power_usage_watts"] == 412.5
    assert found["gpu_1_utilization_percentage"] == 7
    assert "gpu_1_power_usage_watts" not in found
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert gpus() == {}
