#!/usr/bin/env bash
# Makes infra/compose.env from compose.env.example, with a fresh random value for every secret; only you can read it.
#
#   infra/compose-secrets.sh [FILE]
#
# It never touches a file that is there: the database and the store know the old secrets.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
target="${1:-$here/compose.env}"
if [[ -e "$target" ]]; then
  echo "compose-secrets.sh: $target exists; infra/RUNBOOK.md says how to change a secret" >&2
  exit 2
fi
umask 077
scratch="$(mktemp "$target.XXXXXX")"
trap 'rm -f "$scratch"' EXIT
while IFS= read -r line; do
  if [[ "$line" =~ ^[A-Z0-9_]+=$ ]]; then
    line+="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
  fi
  printf '%s\n' "$line"
done <"$here/compose.env.example" >"$scratch"
mv -n "$scratch" "$target"
echo "$target"
