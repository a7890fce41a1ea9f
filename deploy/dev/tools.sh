#!/usr/bin/env bash
# Builds the pinned Go tools into .tools/bin.
source "$(dirname "$0")/steps.sh"
source deploy/dev/inputs.sh

mkdir -p .tools/bin
for module in "$GRPCURL" "$HEALTH_PROBE" "$GHZ"; do
    say "    building $module"
    GOBIN="$ROOT/.tools/bin" go install "$module" || die "Go could not build $module; TOOLS=0 does without it."
done
# The module's last path element names the binary; every manual calls it by the other name.
mv -f .tools/bin/grpc-health-probe .tools/bin/grpc_health_probe
stamp "$TOOLS_STAMP" "${TOOLS_INPUTS[@]}"
