#!/bin/sh
# Runs a command with a state folder of its own and with the PostgreSQL and Chromium that were prepared, so that no check reads or
# writes what belongs to the user, and none talks to a provider.
set -eu
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
unset OPENAI_API_KEY OPENAI_BASE_URL ANTHROPIC_API_KEY ANTHROPIC_BASE_URL WFLO_STORE WFLO_TEAM || true
export WFLO_STATE_DIR="$state"
if [ -f .tools/postgres.path ]; then PATH="$(cat .tools/postgres.path):$PATH"; fi
if [ -f .tools/chromium.path ]; then WFLO_CHROMIUM=$(cat .tools/chromium.path); export WFLO_CHROMIUM; fi
export PATH
"$@"
