#!/usr/bin/env bash
# Generates the Python stubs from proto/ into sdk/downstack. With --check, fails if the committed ones are stale.
set -euo pipefail
cd "$(dirname "$0")/.."
out=sdk
[ "${1:-}" = "--check" ] && out=$(mktemp -d)
PATH="$PWD/.venv/bin:$PATH"
mapfile -t protos < <(find proto -name '*.proto' | sort)
mapfile -t services < <(grep -lE '^service ' "${protos[@]}")
python -m grpc_tools.protoc -Iproto --python_out="$out" --mypy_out="quiet:$out" "${protos[@]}"
python -m grpc_tools.protoc -Iproto --grpc_python_out="$out" --mypy_grpc_out="quiet:$out" "${services[@]}"
[ "$out" = sdk ] && exit 0
stale=$(cd "$out" && find . -name '*_pb2*' | while read -r f; do cmp -s "$f" "$OLDPWD/sdk/$f" || echo "sdk/${f#./}"; done)
extra=$(find sdk -name '*_pb2*' ! -path '*/__pycache__/*' | while read -r f; do [ -e "$out/${f#sdk/}" ] || echo "$f"; done)
rm -rf "$out"
[ -z "$stale$extra" ] || { printf 'Stale stubs; run make proto:\n%s\n' "$stale$extra"; exit 1; }
