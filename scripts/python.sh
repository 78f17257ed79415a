#!/bin/sh
# Runs a script with a Python that this project can use: 3.11 or newer, with the venv module. Says how to get one if there is none.
set -eu
without_venv=""
for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
    if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        exec "$candidate" "$@"
    fi
    without_venv=$candidate
done
if [ -n "$without_venv" ]; then
    echo "wflo_nb: $without_venv has no venv module. Get it with: apt-get install python3-venv (Debian, Ubuntu), then run make again." >&2
else
    echo "wflo_nb: Python 3.11 or newer is needed and $(python3 --version 2>/dev/null || echo 'no python3') was found. Get one from python.org, or: apt-get install python3 python3-venv (Debian 12, Ubuntu 24.04); then run make again, or name it: make PYTHON=/path/to/python3 …" >&2
fi
exit 1
