#!/usr/bin/env bash
# MLflow for a team: runs, figures and users in PostgreSQL, artifacts on S3 through the server, and nobody without a password.
#
#   infra/mlflow/serve.sh
#
# Everything comes from the environment, so that nothing secret stands in a file or in the list of processes:
#
#   PGHOST, PGDATABASE, PGUSER, PGPASSWORD   the database, which must exist (PGPORT and PGSSLMODE too, or PGPASSFILE or
#                                            PGSERVICE: whatever libpq understands)
#   MLFLOW_ARTIFACTS_DESTINATION             s3://bucket/prefix
#   AWS_ACCESS_KEY_ID, ...                   credentials of the bucket, in any way that boto3 understands;
#                                            AWS_ENDPOINT_URL off AWS. Needed here alone: artifacts pass through the server
#   MLFLOW_FLASK_SERVER_SECRET_KEY           32 characters or more, the same at every start:
#                                            python -c 'import secrets; print(secrets.token_hex(32))'
#   MLFLOW_AUTH_ADMIN_USERNAME, MLFLOW_AUTH_ADMIN_PASSWORD
#                                            made an administrator at the first start; 12 characters or more
#
# and, where the defaults do not fit, MLFLOW_HOST (127.0.0.1), MLFLOW_PORT (5000), MLFLOW_WORKERS (2), PYTHON (python3, of
# an environment with `pip install 'vast-video[server]'`) and MLFLOW_SERVER_ALLOWED_HOSTS (names under which it is asked).
set -euo pipefail

problems=()
need() { # name, what it is
  if [[ -z "${!1:-}" ]]; then
    problems+=("$1 is not set: $2")
  fi
}

if [[ -z "${PGSERVICE:-}" ]]; then
  need PGHOST "host of the PostgreSQL server"
  need PGDATABASE "name of the database, which must exist"
  need PGUSER "role that owns the database"
  if [[ -z "${PGPASSFILE:-}" ]]; then
    need PGPASSWORD "password of that role (or PGPASSFILE)"
  fi
fi
need MLFLOW_ARTIFACTS_DESTINATION "where artifacts go, as s3://bucket/prefix"
if [[ -n "${MLFLOW_ARTIFACTS_DESTINATION:-}" && "$MLFLOW_ARTIFACTS_DESTINATION" != s3://?* ]]; then
  problems+=("MLFLOW_ARTIFACTS_DESTINATION is $MLFLOW_ARTIFACTS_DESTINATION: expected s3://bucket/prefix")
fi
need MLFLOW_FLASK_SERVER_SECRET_KEY "32 characters or more, the same at every start"
if [[ -n "${MLFLOW_FLASK_SERVER_SECRET_KEY:-}" && "${#MLFLOW_FLASK_SERVER_SECRET_KEY}" -lt 32 ]]; then
  problems+=("MLFLOW_FLASK_SERVER_SECRET_KEY has ${#MLFLOW_FLASK_SERVER_SECRET_KEY} characters: expected 32 or more")
fi
need MLFLOW_AUTH_ADMIN_USERNAME "name of the first administrator"
need MLFLOW_AUTH_ADMIN_PASSWORD "password of the first administrator, 12 characters or more"
if [[ -n "${MLFLOW_AUTH_ADMIN_PASSWORD:-}" && "${#MLFLOW_AUTH_ADMIN_PASSWORD}" -lt 12 ]]; then
  problems+=("MLFLOW_AUTH_ADMIN_PASSWORD has ${#MLFLOW_AUTH_ADMIN_PASSWORD} characters: expected 12 or more")
fi
python="${PYTHON:-python3}"
if ! "$python" -c 'import mlflow, psycopg, flask_wtf, boto3' 2>/dev/null; then
  problems+=("PYTHON is $python, which lacks MLflow's server parts: pip install 'vast-video[server]' there")
fi
if [[ ${#problems[@]} -gt 0 ]]; then
  echo "serve.sh: the tracking server was not started:" >&2
  printf '  %s\n' "${problems[@]}" >&2
  exit 2
fi

host="${MLFLOW_HOST:-127.0.0.1}"
if [[ "$host" != 127.* && "$host" != localhost && "$host" != ::1 ]]; then
  echo "serve.sh: listening on $host without TLS: keep that network private, or put a proxy with TLS in front" >&2
fi

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export MLFLOW_AUTH_CONFIG_PATH="$here/basic_auth.ini"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # its job runner takes twice the memory of all the rest
export MLFLOW_DISABLE_TELEMETRY=true
if [[ -n "${AWS_ENDPOINT_URL:-}" ]]; then
  export MLFLOW_S3_ENDPOINT_URL="${MLFLOW_S3_ENDPOINT_URL:-$AWS_ENDPOINT_URL}"
fi
# No host, user or password in the address: the driver takes them from PGHOST, PGUSER, PGPASSWORD, ...
exec "$python" -m mlflow server --app-name basic-auth --backend-store-uri postgresql+psycopg:// \
  --artifacts-destination "$MLFLOW_ARTIFACTS_DESTINATION" --host "$host" --port "${MLFLOW_PORT:-5000}" \
  --workers "${MLFLOW_WORKERS:-2}"
