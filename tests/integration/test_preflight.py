"""`vast check` on a real cluster of two nodes: in order, and with ten faults at once."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.ray_nodes import RayNodes, free_ports
from vast.dataset_format import classes_digest, dataset_digest, read_manifest, write_manifest
from vast.storage import open_store

SMALL = ["data.num_frames=4", "data.crop_size=32", "data.eval_short_side=32", "optim.global_batch=8"]
pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def data_sets(s3_server, ssv2_shards, tmp_path_factory):
    """URL of a training set, `train`, one scored on videos of it, `leaking`, and one of other classes, `others`."""
    folder, shards = tmp_path_factory.mktemp("checked"), Path(ssv2_shards)
    manifest = read_manifest(ssv2_shards)
    splits, classes = {"val": manifest.splits["train"]}, manifest.classes[::-1]
    changes = {
        "train": {},
        "leaking": {"splits": splits, "digest": dataset_digest(splits)},
        "others": {"classes": classes, "classes_digest": classes_digest(classes)},
    }
    with s3_server.in_environment():
        bucket = f"s3://{s3_server.make_bucket()}"
        for name, changed in changes.items():
            shutil.copytree(shards, folder / name)
            if name == "leaking":
                shutil.copy(shards / "train.parquet", folder / name / "val.parquet")
            write_manifest(str(folder / name), manifest.model_copy(update=changed))
            store = open_store(f"{bucket}/{name}")
            for path in sorted((folder / name).iterdir()):
                store.put_file(path.name, path)
    return bucket


def check(cluster, folder, *words, **environment):
    command = [sys.executable, "-m", "pipelines.cli", "check", "demo_finetune_ssv2", *SMALL, *words]
    done = subprocess.run(
        command,
        env={**cluster.environment, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def nodes(s3_server, tmp_path):
    cluster = RayNodes(tmp_path, dict(s3_server.environment))
    yield cluster
    cluster.stop()


def test_ten_faults_are_told_at_once_each_with_what_to_do(nodes, data_sets, tmp_path):
    skewed = tmp_path / "skewed" / "vast_video-9.9.dist-info"
    skewed.mkdir(parents=True)
    (skewed / "METADATA").write_text("Metadata-Version: 2.1\nName: vast-video\nVersion: 9.9\n")
    nodes.start(2)
    nodes.start(2, PYTHONPATH=str(skewed.parent), GLOO_SOCKET_IFNAME="vast-none0")
    (closed,) = free_ports(1)
    words = [f"data.url={data_sets}/train", "optim.lrr=0.1", "data.cache_gb=900000", f"data.cache_dir={tmp_path}/cache"]
    words += ["--eval-data", f"{data_sets}/nothing", "--eval-data", f"{data_sets}/others"]
    words += ["--eval-data", f"{data_sets}/leaking", "--output", "s3://vast-no-such-bucket/runs"]
    words += ["--ranks", "4", "--clips-per-second", "50000", "--address", nodes.address]
    done = check(nodes, tmp_path, *words, "--json", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{closed}")
    assert done.returncode == 2, done.stdout + done.stderr
    plain = json.loads(done.stdout)
    assert all(problem["advice"] and problem["found"] for problem in plain["problems"])
    told = [f"{one['area']}: {one['subject']}: {one['found']} ({one['expected']})" for one in plain["problems"]]
    faults = {
        "bad key": ("recipe: optim.lrr", "unknown key"),
        "wrong bucket": ("store: --output s3://vast-no-such-bucket", "no bucket"),
        "missing manifest": ("data: --eval-data", "/nothing", "no manifest.json"),
        "label mismatch": ("data: --eval-data", "/others", "other classes than the training set"),
        "leak": ("data: --eval-data", "/leaking", "share"),
        "MLflow down": ("tracking: MLFLOW_TRACKING_URI", "cannot be used"),
        "version skew": ("nodes: ", "vast-video 9.9", "as here"),
        "too few readers": ("readers: data.num_readers", "% utilisation"),
        "disk full": ("nodes: ", "GB of disk for data.cache_dir", "900000 GB"),
        "blocked link": ("links: 4 ranks", "vast-none0"),
    }
    for fault, parts in faults.items():
        assert any(all(part in line for part in parts) for line in told), "\n".join([fault, *told])
    skew = [line for line in told if "9.9" in line]
    assert len(skew) == 1  # of one node, which is named
    assert re.search(r"\(node \w{6}\)", skew[0])

    shown = check(nodes, tmp_path, *words, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{closed}")
    assert shown.returncode == 2
    assert shown.stdout.count("PROBLEM") == len([one for one in plain["problems"] if not one["warning"]])


def test_a_good_run_on_a_good_cluster_has_no_problems(nodes, data_sets, s3_server, mlflow_server, tmp_path):
    nodes.start(2)
    nodes.start(2)
    words = [f"data.url={data_sets}/train", "--output", f"{data_sets}/runs", "--ranks", "2", "--address", nodes.address]
    done = check(nodes, tmp_path, *words, "--clips-per-second", "5", "--json", MLFLOW_TRACKING_URI=mlflow_server)
    plain = json.loads(done.stdout)
    assert done.returncode == 0, plain["problems"]
    assert [one for one in plain["problems"] if not one["warning"]] == []
    measured = plain["measured"]
    assert 1e7 < measured["all_reduce_bytes_per_s"] < 1e12
    assert 5 < measured["decode_clips_per_s_core"] < 1e5
    epochs = plain["config"]["optim"]["epochs"]
    assert measured["hours"] == pytest.approx(epochs * (24 // 8) * measured["step_s"] / 3600)
    told = " ".join(fact["text"] for fact in plain["facts"])
    assert "2 ranks on 2 nodes sum 64 MiB over gloo" in told
    assert told.count("written at") == 2  # from each node
    with s3_server.in_environment():
        assert list(open_store(f"{data_sets}/runs").list()) == []  # what was written to try it is gone
