"""Bring a bucket into the state that runs expect: it exists, has our lifecycle rules, and who may do what is said.

    python infra/s3/apply.py my-bucket
    python infra/s3/apply.py my-bucket --writer arn:aws:iam::123456789012:role/vast-nodes --reader arn:...:role/people
    python infra/s3/apply.py my-bucket --writer arn:... --print     changes nothing, prints the policy

Credentials of an owner of the bucket come from the standard environment, `AWS_ENDPOINT_URL` too. Without --reader and
--writer the policy is left as it is: on AWS rights may as well hang on the roles. The same rules are then printed for a
role by --print with --role, to be attached to an instance profile or a service account's role.

Run it as often as you like. Exit code 0 done, 1 the server refused, 2 a mistake.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_READY_S = 90.0


def main() -> int:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description="Make a bucket ready for runs.")
    parser.add_argument("bucket")
    parser.add_argument("--reader", action="append", default=[], metavar="ARN", help="may list and read")
    parser.add_argument("--writer", action="append", default=[], metavar="ARN", help="may also write and delete")
    parser.add_argument("--allow-http", action="store_true", help="a server without TLS, on a private network")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the policy, change nothing")
    parser.add_argument("--role", choices=["reader", "writer"], help="with --print: as a policy of a role")
    args = parser.parse_args()
    if args.role:
        policy = role_policy(args.bucket, args.role)
    else:
        policy = bucket_policy(args.bucket, args.reader, args.writer, allow_http=args.allow_http)
    if args.only_print or args.role:
        print(json.dumps(policy, indent=2))
        return 0
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        _apply(args.bucket, policy if args.reader or args.writer else None)
    except (BotoCoreError, ClientError) as error:
        print(f"apply.py: {args.bucket}: {error}", file=sys.stderr)
        return 1
    return 0


def bucket_policy(bucket: str, readers: list[str], writers: list[str], *, allow_http: bool) -> dict[str, Any]:
    """bucket-policy.json for this bucket and these principals; statements that nobody is left for are not there."""
    policy = _template(bucket)
    people = {"READERS": readers, "WRITERS": writers}
    kept = []
    for statement in policy["Statement"]:
        if statement["Effect"] == "Deny":
            if not allow_http:
                kept.append(statement)
            continue
        named = [arn for group in statement["Principal"]["AWS"] for arn in people[group]]
        if named:
            kept.append({**statement, "Principal": {"AWS": named}})
    return {**policy, "Statement": kept}


def role_policy(bucket: str, role: str) -> dict[str, Any]:
    """The same rules as a policy to attach to a role, which names no principal."""
    policy = _template(bucket)
    group = f"{role.upper()}S"
    kept = [
        {key: value for key, value in statement.items() if key != "Principal"}
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow" and group in statement["Principal"]["AWS"]
    ]
    return {**policy, "Statement": kept}


def _template(bucket: str) -> dict[str, Any]:
    policy: dict[str, Any] = json.loads((HERE / "bucket-policy.json").read_text().replace("BUCKET", bucket))
    return policy


def _apply(bucket: str, policy: dict[str, Any] | None) -> None:
    import boto3

    client = boto3.client("s3")
    _make(client, bucket)
    rules = json.loads((HERE / "lifecycle.json").read_text())
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    said = [rule["ID"] for rule in rules["Rules"]]
    print(f"{bucket}: lifecycle rules {', '.join(said)}")
    if policy is not None:
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        print(f"{bucket}: policy of {len(policy['Statement'])} statements")


def _make(client: Any, bucket: str) -> None:
    """Make the bucket unless it is there, and wait until the server is: one that has just started takes a while."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + _READY_S
    while True:
        try:
            client.head_bucket(Bucket=bucket)
            return
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 404:
                region = client.meta.region_name
                where = {"LocationConstraint": region} if region not in (None, "us-east-1") else None
                client.create_bucket(Bucket=bucket, **({"CreateBucketConfiguration": where} if where else {}))
                print(f"{bucket}: made")
                return
            if status < 500 or time.monotonic() > deadline:
                raise
        except BotoCoreError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
