#!/usr/bin/env bash
# Runs an experiment on Cloud TPU VMs: asks for the slices, installs the project on every host, runs there.
# Preempted slices are asked for again, and the run goes on from its newest checkpoint.
set -euo pipefail

name=@{name}
command=@{command}
bucket=@{bucket}
attempts=@{attempts}
tpus() { gcloud alpha compute tpus queued-resources "$@" @{place} --quiet; }
state() { tpus describe "$name" --format='value(state.state)' 2>/dev/null || echo NONE; }
on_hosts() { tpus ssh "$name" --node=all --worker=all --command="$1"; }

source=$(mktemp -d)/rewardjax.tar.gz
trap 'rm -rf "$(dirname "$source")"' EXIT
tar -C @{project_root} --exclude='./.*' --exclude=./runs -czf "$source" .

install='rm -rf rewardjax && mkdir rewardjax && tar -xzf rewardjax.tar.gz -C rewardjax
  && python3 -m pip install -q --user uv && python3 -m uv venv -q --allow-existing --python 3.11 env
  && python3 -m uv pip install -q --python env -e "./rewardjax[tpu]"'
install=${install//$'\n'/ }
# A host has to see at once what another one wrote.
mount='set -e; command -v gcsfuse >/dev/null || {
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null
    echo "deb [signed-by=/usr/share/keyrings/gcsfuse.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -q update && sudo apt-get -qy install gcsfuse
  }
  mkdir -p @{mount}
  mountpoint -q @{mount} ||
    gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 '$bucket' @{mount}'
[[ -n $bucket ]] || mount=true
run="cd rewardjax && PATH=\$HOME/env/bin:\$PATH REWARDJAX_COORDINATOR=auto $command"

while true; do
  now=$(state)
  case "$now" in
    ACTIVE) ;;
    NONE)
      if ((attempts-- == 0)); then
        echo "$name: asked for @{attempts} times; given up" >&2
        exit 1
      fi
      tpus create "$name" --accelerator-type=@{accelerator} --runtime-version=@{runtime} @{capacity}
      continue
      ;;
    FAILED | SUSPENDED)
      tpus delete "$name" --force
      continue
      ;;
    *)
      echo "$name: $now" >&2
      sleep "${POLL_SECONDS:-30}"
      continue
      ;;
  esac
  code=0
  { tpus scp "$source" "$name:rewardjax.tar.gz" --node=all --worker=all &&
    on_hosts "$install" && on_hosts "$mount" && on_hosts "$run"; } || code=$?
  # A preemption shows in the state only after a while; 143 is a run that was told to stop.
  ((code == 0)) || sleep "${POLL_SECONDS:-30}"
  if ((code == 0)) || { ((code != 143)) && [[ $(state) == ACTIVE ]]; }; then
    tpus delete "$name" --force
    exit "$code"
  fi
done
