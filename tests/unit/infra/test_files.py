"""YAML, compose file, scripts, launcher and bucket rules, each by the validator of its field, without a network."""

import copy
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())


def run(name: str, *words: object) -> "subprocess.CompletedProcess[str]":
    program = shutil.which(name, path=str(Path(sys.executable).parent))
    assert program, f"{name} comes with pip install -e '.[dev]'"
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False, cwd=ROOT)


def test_yamllint_has_nothing_to_say():
    done = run("yamllint", "--strict", "--config-file", ".yamllint.yaml", "infra", "pipelines/recipes")
    assert done.returncode == 0, done.stdout


def test_shellcheck_has_nothing_to_say():
    scripts = sorted(INFRA.rglob("*.sh"))
    assert len(scripts) >= 5
    done = run("shellcheck", *scripts)
    assert done.returncode == 0, done.stdout
    for script in scripts:
        sourced = "shellcheck shell=" in script.read_text()
        assert sourced or script.stat().st_mode & stat.S_IXUSR, f"{script} is not executable"


# --- compose ---------------------------------------------------------------------------------------------------------


def test_compose_files_are_valid(tmp_path):
    def check(*paths: Path) -> "subprocess.CompletedProcess[str]":
        return run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *paths)

    done = check(INFRA / "compose.yaml", INFRA / "compose.gpu.yaml")
    assert done.returncode == 0, done.stdout
    spoilt = copy.deepcopy(COMPOSE)
    spoilt["services"]["mlflow"]["depend_on"] = spoilt["services"]["mlflow"].pop("depends_on")
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(spoilt))
    assert "depend_on" in check(tmp_path / "compose.yaml").stdout


def test_everything_published_is_published_on_the_loopback():
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(published) == 5
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_services_wait_for_what_they_need():
    services = COMPOSE["services"]
    for name, service in services.items():
        needs = service.get("depends_on", {})
        for needed in needs:
            condition = needs[needed]["condition"] if isinstance(needs, dict) else "service_started"
            if condition == "service_healthy":
                assert "healthcheck" in services[needed], f"{name} waits for the health of {needed}, which tells none"
            if condition == "service_completed_successfully":
                assert services[needed]["restart"] == "on-failure", f"{needed} shall run once"


def test_every_variable_is_defined_or_has_a_default_and_every_secret_is_required():
    texts = [path.read_text() for path in INFRA.glob("compose*.yaml")]
    used = {name: rest for text in texts for name, rest in re.findall(r"\$\{(\w+)([^}]*)\}", text)}
    versions = set(re.findall(r"^(\w+)=", (INFRA / "versions.env").read_text(), flags=re.M))
    example = dict(re.findall(r"^(\w+)=(.*)$", (INFRA / "compose.env.example").read_text(), flags=re.M))
    secrets = {name for name, value in example.items() if not value}
    assert len(secrets) >= 9
    assert secrets == {name for name, rest in used.items() if rest.startswith(":?")}
    assert set(example) <= set(used), "compose.env.example names what nothing reads"
    for name, rest in used.items():
        assert name in versions or name in secrets or rest == f":-{example[name]}", name


def test_ray_asks_for_its_token_everywhere():
    nodes = {name: service for name, service in COMPOSE["services"].items() if "ray" in str(service.get("command"))}
    assert set(nodes) == {"ray-head", "ray-worker"}
    for service in nodes.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
        assert service["cap_drop"] == ["ALL"]
        assert "shm_size" in service


def test_secrets_are_made_once_each_different_and_for_nobody_else(tmp_path):
    target = tmp_path / "compose.env"
    script = INFRA / "compose-secrets.sh"
    assert subprocess.run([script, target], capture_output=True, check=False).returncode == 0
    values = dict(re.findall(r"^(\w+)=(.*)$", target.read_text(), flags=re.M))
    example = dict(re.findall(r"^(\w+)=(.*)$", (INFRA / "compose.env.example").read_text(), flags=re.M))
    made = [values[name] for name, value in example.items() if not value]
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in made)
    assert len(set(made)) == len(made)
    assert {name: values[name] for name, value in example.items() if value} == {k: v for k, v in example.items() if v}
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    before = target.read_text()
    again = subprocess.run([script, target], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert target.read_text() == before
    assert os.listdir(tmp_path) == ["compose.env"]


def test_the_secrets_file_can_not_be_committed_or_sent_to_the_builder():
    ignored = subprocess.run(["git", "check-ignore", "infra/compose.env"], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode == 0
    assert "**/*.env" in (ROOT / ".dockerignore").read_text().splitlines()


# --- AWS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def launcher() -> dict:
    return yaml.safe_load((INFRA / "ray-aws.yaml").read_text())


def validate_launcher(config: dict) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_rays_launcher_takes_the_file(launcher):
    validate_launcher(launcher)
    kinds = launcher["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in kinds["cpu"]["node_config"]
    for kind in kinds.values():
        assert kind["node_config"]["IamInstanceProfile"]["Arn"].startswith("arn:aws:iam::")
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    assert "file_mounts" not in launcher
    assert "--env RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]


def test_rays_launcher_refuses_mistakes(launcher):
    launcher["head_node_typ"] = launcher.pop("head_node_type")
    with pytest.raises(Exception, match="head_node_typ"):
        validate_launcher(launcher)


def test_aws_takes_what_each_node_asks_for(launcher):
    """botocore's own model of RunInstances, without asking AWS anything."""
    import boto3
    from botocore.validate import ParamValidator

    client = boto3.client("ec2", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    shape = client.meta.service_model.operation_model("RunInstances").input_shape
    for name, kind in launcher["available_node_types"].items():
        request = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}
        assert not ParamValidator().validate(request, shape).has_errors(), name


def test_the_secrets_of_aws_become_variables_and_only_those_that_we_know(tmp_path):
    secret = {"RAY_AUTH_TOKEN": "a'b $HOME", "MLFLOW_TRACKING_PASSWORD": "p", "LD_PRELOAD": "/evil"}
    (tmp_path / "boto3.py").write_text(
        "class client:\n"
        "    def __init__(self, name): assert name == 'secretsmanager'\n"
        f"    def get_secret_value(self, SecretId): return {{'SecretString': {json.dumps(secret)!r}}}\n"
    )
    (tmp_path / "python").symlink_to(sys.executable)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    script = f"source {INFRA}/docker/aws-secrets.sh vast/cluster && env"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "RAY_AUTH_TOKEN=a'b $HOME\n" in done.stdout, done.stderr
    assert "MLFLOW_TRACKING_PASSWORD=p\n" in done.stdout
    assert "LD_PRELOAD" not in done.stdout
    (tmp_path / "boto3.py").write_text("def client(name): raise SystemExit('no right')\n")
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "may the instance's role read it?" in done.stderr


# --- bucket ----------------------------------------------------------------------------------------------------------


def apply(*words: str) -> dict:
    program = [sys.executable, str(INFRA / "s3" / "apply.py"), *words]
    return json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


def test_amazons_own_model_takes_the_lifecycle_rules():
    import boto3
    from botocore.validate import ParamValidator

    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    shape = client.meta.service_model.operation_model("PutBucketLifecycleConfiguration").input_shape
    rules = json.loads((INFRA / "s3" / "lifecycle.json").read_text())
    request = {"Bucket": "b", "LifecycleConfiguration": rules}
    assert not ParamValidator().validate(request, shape).has_errors()
    rules["Rules"][0]["AbortIncompleteMultipartUpload"] = {"Days": 3}
    assert ParamValidator().validate(request, shape).has_errors()


def test_a_policy_gives_readers_and_writers_what_they_need_and_no_more():
    readers, writers = "arn:aws:iam::123456789012:role/people", "arn:aws:iam::123456789012:role/nodes"
    policy = apply("my-bucket", "--reader", readers, "--writer", writers, "--print")
    rights: dict[str, set[str]] = {readers: set(), writers: set()}
    for statement in policy["Statement"]:
        assert all(re.fullmatch(r"arn:aws:s3:::my-bucket(/\*)?", one) for one in statement["Resource"])
        if statement["Effect"] == "Allow":
            for arn in statement["Principal"]["AWS"]:
                rights[arn] |= set(statement["Action"])
    assert rights[readers] == {"s3:ListBucket", "s3:GetBucketLocation", "s3:GetObject"}
    assert rights[writers] - rights[readers] == {
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
        "s3:ListBucketMultipartUploads",
    }
    assert policy["Statement"][-1]["Effect"] == "Deny"
    assert "Deny" not in {
        one["Effect"] for one in apply("b", "--writer", writers, "--allow-http", "--print")["Statement"]
    }


def test_the_policy_of_a_role_names_nobody():
    policy = apply("my-bucket", "--role", "reader")
    assert [one["Sid"] for one in policy["Statement"]] == ["ReadersAndWritersSeeTheBucket", "ReadersAndWritersRead"]
    assert not any("Principal" in one for one in policy["Statement"])
    assert len(apply("my-bucket", "--role", "writer")["Statement"]) == 4
