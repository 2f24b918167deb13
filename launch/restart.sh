#!/usr/bin/env bash
# Runs a command, again when it fails, and ends with its last exit code.
# usage: bash launch/restart.sh COMMAND [ARGUMENTS]
# Not run again: 0 (finished), 2 (the user has to change something), 75 (stopped on request, saved), and
# anything after a SIGTERM or Ctrl-C, which is handed on to the command as SIGTERM.
# RESTARTS: how often at most (default 3); RESTART_PAUSE: seconds before each (default 10).
set -uo pipefail
set -m # a process group for the command: Ctrl-C reaches this script alone

child="" stopping=0
stop() {
  stopping=1
  kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

# Runs a command to its end, also when a signal breaks off `wait`; `code`: its exit code.
to_the_end() {
  "$@" &
  child=$!
  ((stopping)) && stop # the signal came before there was a child
  while true; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || return 0
  done
}

for ((again = 1; ; again++)); do
  to_the_end "$@"
  last=$code
  if ((stopping || last == 0 || last == 2 || last == 3 || last == 75 || again > ${RESTARTS:-3})); then
    exit "$last"
  fi
  echo "exit code $last: the same command again in ${RESTART_PAUSE:-10} s ($again of ${RESTARTS:-3})" >&2
  to_the_end sleep "${RESTART_PAUSE:-10}"
  ((stopping)) && exit "$last"
done
