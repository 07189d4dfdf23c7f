#!/usr/bin/env bash
# Runs an experiment on this machine, in one process or in several that share a mesh.
set -o pipefail

processes=@{processes}
if ((processes == 1)); then
  exec @{command}
fi

export REWARDJAX_COORDINATOR=localhost:@{port} REWARDJAX_PROCESSES=$processes
pids=()
stopping=0
# Once: a second SIGTERM would cut the checkpoint short that the first one asked for.
stop() { ((stopping++)) || kill -TERM "${pids[@]}" 2>/dev/null; }
for ((i = 0; i < processes; i++)); do
  REWARDJAX_PROCESS=$i @{command} &
  pids+=($!)
done
# Not before: a process that is just being started would have the trap, and not be stopped by a signal.
trap stop INT TERM

code=0
while ((${#pids[@]})); do
  alive=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      alive+=("$pid")
    else
      wait "$pid"
      one=$?
      ((code != 0)) || code=$one
    fi
  done
  pids=("${alive[@]}")
  # One that failed leaves the others waiting for it.
  ((code == 0 || ${#pids[@]} == 0)) || stop
  sleep 0.2
done
exit "$code"
