#!/usr/bin/env bash
# Removes caches and the local run's data; with --all also the environment and the tools. Stops the local run first.
source "$(dirname "$0")/steps.sh"

if [ -x .venv/bin/downstack ]; then .venv/bin/downstack down >/dev/null 2>&1 || true; fi
rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
find services sdk tests -name __pycache__ -type d -prune -exec rm -rf {} +
# The weights are made by the set-up, not by a run.
if [ -d .downstack ]; then find .downstack -mindepth 1 -maxdepth 1 ! -name models -exec rm -rf {} +; fi
if [ "${1:-}" = --all ]; then rm -rf .venv .tools .downstack; fi
