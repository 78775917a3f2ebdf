#!/usr/bin/env bash
# docker compose with this installation's files: infra/compose.sh up --detach --wait
#
# Before it, infra/compose-secrets.sh. With VARIANT=cuda in infra/compose.env the workers get the machine's GPUs.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [[ ! -e "$here/compose.env" ]]; then
  echo "compose.sh: there is no $here/compose.env; infra/compose-secrets.sh makes it" >&2
  exit 2
fi
files=(--file "$here/compose.yaml")
if grep -qx 'VARIANT=cuda' "$here/compose.env"; then
  files+=(--file "$here/compose.gpu.yaml")
fi
exec docker compose --env-file "$here/versions.env" --env-file "$here/compose.env" "${files[@]}" "$@"
