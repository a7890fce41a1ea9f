#!/usr/bin/env bash
# Runs the demonstration of a set-up checkout; arguments go to `downstack demo`.
source "$(dirname "$0")/steps.sh"

exec .venv/bin/downstack demo --engine "$ENGINE" "$@"
