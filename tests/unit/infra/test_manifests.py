"""What render.py writes, against Kubernetes' own schemas and against ours for KubeRay's kinds."""

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[3]
KUBERAY = ROOT / "infra" / "kuberay"
SCHEMA = json.loads((KUBERAY / "schema.json").read_text())
VERSIONS = dict(
    line.split("=", 1) for line in (ROOT / "infra" / "versions.env").read_text().splitlines() if line and line[0] != "#"
)
JOBS = {
    "shard": "vast shard ssv2 --annotations /videos/labels --videos /videos/ssv2 --out s3://b/ssv2",
    "pretrain": "vast pretrain pretrain_k400_vast_ti_8f data.url=s3://b/k400 --output s3://b/runs --ranks 8..48",
    "finetune": "vast finetune finetune_ssv2_vast_ti_8f data.url=s3://b/ssv2 init_from=s3://b/runs/R --output s3://b/runs",
    "search": "vast search demo_search data.url=s3://b/ssv2 --output s3://b/runs",
    "evaluate": "vast evaluate s3://b/runs/R --data s3://b/ssv2 --protocol 1x3 --out s3://b/evaluations",
}
SITE = """
image: registry.internal/team/vast-video
store: {secret: "", service_account: vast-runs, endpoint: "http://store:8333"}
ray_token_secret: vast-ray
videos: {claim: raw-videos}
groups:
  gpu: {node_selector: {pool: a100}, gpus: 4}
commands:
  pretrain: {pods: {gpu: [2, 6]}}
"""


def load_renderer():
    spec = importlib.util.spec_from_file_location("render", KUBERAY / "render.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # as when it is run as a program
        patch.syspath_prepend(KUBERAY)
        spec.loader.exec_module(module)
    return module


render = load_renderer()
pods = sys.modules["pods"]


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(SITE)
    return path


def rendered(capsys, *words: str) -> dict:
    assert render.main(list(words)) == 0
    return yaml.safe_load(capsys.readouterr().out)


def pod_templates(manifest: dict) -> list[dict]:
    spec = manifest["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups] + [spec[key] for key in ("submitterPodTemplate",) if key in spec]


def check(manifest: dict) -> None:
    """Raise unless KubeRay and Kubernetes take it."""
    jsonschema.validate(manifest, SCHEMA)
    for template in pod_templates(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {**template.get("metadata", {}), "name": "x"}
        kubernetes_validate.validate(pod, VERSIONS["KUBERNETES_VERSION"].rpartition(".")[0], strict=True)


@pytest.mark.parametrize("verb", JOBS)
@pytest.mark.parametrize("with_site", [False, True])
def test_every_job_is_valid(verb, with_site, site, capsys):
    options = ["--values", str(site)] if with_site else []
    manifest = rendered(capsys, *options, "--", *JOBS[verb].split())
    check(manifest)
    assert manifest["kind"] == "RayJob"
    spec = manifest["spec"]
    assert spec["entrypoint"] == JOBS[verb].replace("vast ", "vast --log /dev/stderr ", 1)
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] >= 12 * 3600
    assert spec["backoffLimit"] >= 1


def test_the_cluster_is_valid_and_has_the_three_groups(capsys):
    manifest = rendered(capsys, "cluster")
    check(manifest)
    assert [group["groupName"] for group in manifest["spec"]["workerGroupSpecs"]] == ["cpu", "gpu", "spot"]


def test_the_network_policy_and_the_pod_monitor_are_valid(capsys):
    policy = rendered(capsys, "network")
    kubernetes_validate.validate(policy, VERSIONS["KUBERNETES_VERSION"].rpartition(".")[0], strict=True)
    monitor = rendered(capsys, "monitoring")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
    cluster = rendered(capsys, "cluster")
    labels = {"ray.io/is-ray-node": "yes"}  # KubeRay's own, on every Ray pod
    for template in pod_templates(cluster):
        assert (labels | template["metadata"]["labels"]).items() >= monitor["spec"]["selector"]["matchLabels"].items()
        assert (labels | template["metadata"]["labels"]).items() >= policy["spec"]["podSelector"]["matchLabels"].items()
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert ports[monitor["spec"]["podMetricsEndpoints"][0]["port"]] == render.METRICS_PORT


def break_name(cluster):
    cluster["workerGroupSpecs"][0]["groupname"] = cluster["workerGroupSpecs"][0].pop("groupName")


def break_number(cluster):
    cluster["workerGroupSpecs"][0]["replicas"] = "2"


def break_least(cluster):
    del cluster["workerGroupSpecs"][0]["minReplicas"]


def break_parameter(cluster):
    cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def break_mode(cluster):
    cluster["authOptions"]["mode"] = "tokens"


def break_pod(cluster):
    cluster["headGroupSpec"]["template"]["spec"]["container"] = []


def break_quantity(cluster):
    cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "8080"


@pytest.mark.parametrize(
    "spoil", [break_name, break_number, break_least, break_parameter, break_mode, break_pod, break_quantity]
)
def test_a_spoilt_manifest_is_refused(spoil, capsys):
    manifest = rendered(capsys, "--", *JOBS["pretrain"].split())
    good = copy.deepcopy(manifest)
    spoil(manifest["spec"]["rayClusterSpec"])
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)
    check(good)


def test_a_job_with_a_field_that_kuberay_does_not_have_is_refused(capsys):
    manifest = rendered(capsys, "--", *JOBS["pretrain"].split())
    manifest["spec"]["activeDeadline"] = 60
    with pytest.raises(jsonschema.ValidationError, match="activeDeadline"):
        check(manifest)


@pytest.mark.parametrize("words", [["cluster"], ["--", *JOBS["pretrain"].split()]])
def test_pods_are_safe_and_sized_alike(words, capsys, site):
    manifest = rendered(capsys, "--values", str(site), *words)
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert cluster["authOptions"] == {"mode": "token", "secretName": "vast-ray"}
    images = set()
    for template in pod_templates(manifest):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        images.add(container["image"])
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert images == {f"registry.internal/team/vast-video:{VERSIONS['VAST_VERSION']}-cuda"}
    for group in cluster["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        shared = next(volume for volume in spec["volumes"] if volume["name"] == "shm")
        assert shared["emptyDir"]["medium"] == "Memory"
        assert spec["terminationGracePeriodSeconds"] > pods.DRAIN_S
        assert spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][0] == "/opt/vast/drain-node.sh"


def test_secrets_come_by_reference_and_nothing_else_names_them(capsys):
    text = yaml.safe_dump(rendered(capsys, "--", *JOBS["pretrain"].split()))
    manifest = yaml.safe_load(text)
    for template in pod_templates(manifest)[:-1]:
        environment = {entry["name"]: entry for entry in template["spec"]["containers"][0]["env"]}
        for name in (
            "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
        ):  # fmt: skip
            assert set(environment[name]) == {"name", "valueFrom"}
            assert environment[name]["valueFrom"]["secretKeyRef"]["key"] == name
    assert "env" not in pod_templates(manifest)[-1]["spec"]["containers"][0]  # the submitter speaks to Ray alone


def test_spot_pods_go_where_spot_nodes_are(capsys):
    groups = {group["groupName"]: group for group in rendered(capsys, "cluster")["spec"]["workerGroupSpecs"]}
    spec = groups["spot"]["template"]["spec"]
    assert {"key": "vast/capacity", "operator": "Equal", "value": "spot", "effect": "NoSchedule"} in spec["tolerations"]
    assert spec["nodeSelector"] == {"vast/capacity": "spot"}
    assert groups["spot"]["minReplicas"] == 0
    assert "tolerations" not in groups["cpu"]["template"]["spec"]


def test_a_sites_values_change_what_they_name_and_nothing_else(site, capsys):
    manifest = rendered(capsys, "--values", str(site), "--", *JOBS["pretrain"].split())
    (group,) = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["groupName"], group["minReplicas"], group["maxReplicas"]) == ("gpu", 2, 6)
    spec = group["template"]["spec"]
    assert spec["nodeSelector"] == {"pool": "a100"}
    assert spec["serviceAccountName"] == "vast-runs"
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert spec["containers"][0]["resources"]["limits"]["cpu"] == "64"
    assert {"name": "videos", "mountPath": "/videos", "readOnly": True} in spec["containers"][0]["volumeMounts"]
    names = {entry["name"] for entry in spec["containers"][0]["env"]}
    assert "AWS_ACCESS_KEY_ID" not in names  # the service account's role stands for it
    assert "AWS_ENDPOINT_URL" in names


def test_the_same_command_has_the_same_name_and_no_other_command_has_it(capsys):
    names = [rendered(capsys, "--", *JOBS["pretrain"].split(), *more)["metadata"]["name"]
             for more in ([], [], ["optim.lr=1e-3"])]  # fmt: skip
    assert names[0] == names[1] != names[2]
    long = rendered(capsys, "--", "vast", "pretrain", "A_" * 60, "data.url=x")["metadata"]["name"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,45}[a-z0-9]", long)


def test_words_with_spaces_and_dollars_reach_the_command_as_they_were(capsys):
    manifest = rendered(
        capsys, "--", "vast", "shard", "folder", "--videos", "/videos/my clips $HOME", "--out", "s3://b/x"
    )
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {manifest['spec']['entrypoint']}"], capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines()[6] == "/videos/my clips $HOME"


@pytest.mark.parametrize(
    ("values", "words", "message"),
    [
        ("", ["--", "vast", "demo"], "expected vast and one of shard, pretrain, finetune, search, evaluate"),
        ("", ["--", "python", "x.py"], "'python x.py' is no job for a cluster"),
        ("", [], "give one of cluster, monitoring and network, or a command after --"),
        ("imagee: x", ["cluster"], "imagee is not known"),
        ("store: {bucket: x}", ["cluster"], "store.bucket is not known; store has endpoint"),
        ("groups: {gpu: {gpuss: 1}}", ["cluster"], "groups.gpu.gpuss is not known"),
        ("commands: {cluster: {pods: {tpu: 1}}}", ["cluster"], "groups.tpu is not there"),
        ("commands: {cluster: {pods: {cpu: [4, 1]}}}", ["cluster"], "pods of cpu: [4, 1] is neither"),
        ("store: vast", ["cluster"], "store is 'vast': expected a mapping"),
        ("- cpu", ["cluster"], "site.yaml: expected names and values"),
        ("a: [", ["cluster"], "site.yaml"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(values, words, message, tmp_path, capsys):
    path = tmp_path / "site.yaml"
    path.write_text(values)
    assert render.main(["--values", str(path), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_it_runs_as_a_program_from_anywhere(tmp_path):
    words = [sys.executable, str(KUBERAY / "render.py"), "--", *JOBS["shard"].split()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["kind"] == "RayJob"


CRDS = os.environ.get("VAST_KUBERAY_CRDS", "")


@pytest.mark.skipif(not CRDS, reason="VAST_KUBERAY_CRDS names no folder with KubeRay's CRDs (ray.io_rayjobs.yaml, ...)")
@pytest.mark.parametrize("words", [["cluster"], *(["--", *line.split()] for line in JOBS.values())])
def test_kuberays_own_schema_agrees(words, capsys):
    manifest = rendered(capsys, *words)
    crd = yaml.safe_load((Path(CRDS) / f"ray.io_{manifest['kind'].lower()}s.yaml").read_text())
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    jsonschema.validate(manifest, strict(version["schema"]["openAPIV3Schema"]))


def strict(schema):
    """The schema with names that it does not list refused, as Kubernetes prunes them without a word."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        found["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
        if "metadata" in found["properties"] and "kind" in found["properties"]:
            found["properties"]["metadata"] = {"type": "object"}
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    return found
