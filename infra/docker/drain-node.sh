#!/usr/bin/env bash
# Has the ranks on this Ray node save and move before the node goes; Kubernetes runs it as a preStop hook.
#
#   drain-node.sh [SECONDS [NODE_ID]]
#
# Tells Ray that the node goes in SECONDS (100), which every rank of a run hears: the run saves, ends and starts again
# where there is room. Waits until no rank is left here, at most that long. RAY_ADDRESS names the cluster; NODE_ID is
# this node's, where it is not the one that Ray finds by itself.
set -euo pipefail

seconds="${1:-100}"
words=(--reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the node is going away"
  --deadline-remaining-seconds "$seconds")
if [[ -n "${2:-}" ]]; then
  words+=(--node-id "$2")
fi
deadline=$((SECONDS + seconds))
if ! timeout "$seconds" ray drain-node "${words[@]}"; then
  echo "drain-node.sh: Ray did not take it; ranks here end with the node, and the run goes on from its last checkpoint" >&2
  exit 0 # a hook that fails ends the container all the same
fi
# the kernel keeps fifteen characters of ray::RayTrainWorker
while grep -qs '^ray::RayTrainWo' /proc/[0-9]*/comm && ((SECONDS < deadline)); do
  sleep 1
done
