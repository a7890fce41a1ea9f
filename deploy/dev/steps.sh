# Sourced by the scripts beside it: the project's root, messages, and steps that run only when their inputs changed.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROOT=$PWD
ENGINE=${ENGINE:-vllm}
TOOLS=${TOOLS:-1}
export PATH="$ROOT/.venv/bin:$ROOT/.tools/bin:$PATH" UV_PYTHON_DOWNLOADS=never

say() { printf '%s\n' "$*" >&2; }
die() { printf 'Error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# fingerprint WORD... prints one hash of the words, and of the contents of those that are files.
fingerprint() {
    local word
    for word in "$@"; do
        printf '%s\n' "$word"
        if [ -f "$word" ]; then cat "$word"; fi
    done | sha256sum | cut -d' ' -f1
}

# current STAMP INPUT... succeeds if the step behind the stamp was done with the same inputs.
current() {
    local stamp=$1
    shift
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$@")" ]
}

# stamp STAMP INPUT... remembers that a step was done with these inputs.
stamp() {
    local stamp=$1
    shift
    mkdir -p "$(dirname "$stamp")"
    fingerprint "$@" >"$stamp"
}

case $ENGINE in
    vllm | sim) ;;
    *) die "ENGINE is '$ENGINE'; it can be vllm or sim." ;;
esac
