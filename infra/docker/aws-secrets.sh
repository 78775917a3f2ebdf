# shellcheck shell=bash
# To be sourced: exports what a secret of AWS Secrets Manager holds, by the right of the instance's role.
#
#   source aws-secrets.sh SECRET_ID
#
# The secret is JSON with RAY_AUTH_TOKEN and, where the tracking server asks for them, MLFLOW_TRACKING_USERNAME and
# MLFLOW_TRACKING_PASSWORD. Anything else in it is left alone.
if ! _exports="$(
  python - "$1" <<'PYTHON'
import json
import shlex
import sys

import boto3

secret = json.loads(boto3.client("secretsmanager").get_secret_value(SecretId=sys.argv[1])["SecretString"])
if "RAY_AUTH_TOKEN" not in secret:
    sys.exit(f"aws-secrets.sh: {sys.argv[1]} has no RAY_AUTH_TOKEN")
for name in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
    if name in secret:
        print(f"export {name}={shlex.quote(secret[name])}")
PYTHON
)"; then
  unset _exports
  echo "aws-secrets.sh: $1 cannot be read from AWS Secrets Manager; may the instance's role read it?" >&2
  return 1
fi
eval "$_exports"
unset _exports
