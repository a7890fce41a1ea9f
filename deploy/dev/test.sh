#!/usr/bin/env bash
# Runs the tests; arguments go to pytest. With ENGINE=sim the tests that need vLLM are skipped.
source "$(dirname "$0")/steps.sh"

export DOWNSTACK_TEST_ENGINE=$ENGINE
exec .venv/bin/python -m pytest "$@"
