#!/usr/bin/env bash
# Runs every static check, and fails if one of them failed.
source "$(dirname "$0")/steps.sh"

# mypy and the linters need the development tools, not an engine.
if [ ! -f .venv/stamps/packages-vllm ]; then ENGINE=sim; fi
ENGINE=$ENGINE deploy/dev/python.sh

failed=()
check() {
    local title=$1
    shift
    say "== $title"
    "$@" || failed+=("$title")
}

# breaking compares the contracts with those of main, where main has any.
breaking() {
    local branch
    for branch in main origin/main; do
        if git cat-file -e "$branch:proto" 2>/dev/null; then
            buf breaking --against ".git#ref=$(git rev-parse "$branch")"
            return
        fi
    done
    say "   main has no contracts yet"
}

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "mypy" mypy
check "import arrows" lint-imports --no-cache
check "buf lint" buf lint
check "buf format" buf format --diff --exit-code
check "buf breaking" breaking
check "stubs are fresh" proto/generate.sh --check
check "compose schema" check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

if [ "${#failed[@]}" -gt 0 ]; then
    die "these checks failed: $(printf '%s, ' "${failed[@]}" | sed 's/, $//')."
fi
say "All checks passed."
