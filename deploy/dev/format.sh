#!/usr/bin/env bash
# Formats Python and protobuf, and fixes what ruff can fix by itself.
source "$(dirname "$0")/steps.sh"

ruff check --fix-only --quiet .
ruff format .
buf format --write
