#!/bin/sh
# Resolves the exact versions that CI and the demo install, for every Python we support, without index addresses or paths in the files.
# Versions already pinned are kept where they still fit; `UPGRADE=--upgrade make lock` takes the newest.
set -eu
command -v uv >/dev/null 2>&1 || { echo "wflo_nb: make lock needs uv: pip install uv" >&2; exit 1; }
lock() {
    uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
        ${UPGRADE:-} "$@"
}
lock pyproject.toml --extra test --extra postgres --extra demo --extra otel --extra plot -o constraints.txt
lock pyproject.toml scripts/openai2.in --extra postgres -o constraints-openai2.txt
for group in graphs crews agents indexes claude; do
    lock pyproject.toml "scripts/frameworks-$group.in" --extra postgres -o "constraints-frameworks-$group.txt"
done
