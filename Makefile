# A menu. The work is done by the scripts in deploy/dev/ and by the `downstack` command.
#
#   ENGINE  vllm (default): a real model on the CPU.  sim: a simulated engine, without vLLM and torch.
#   TOOLS   1 (default): ghz, grpcurl and grpc_health_probe too.  0: without them, and without Go.
#   ARGS    handed on to the command, such as ARGS="-k tickets" for `make test`.

ENGINE ?= vllm
TOOLS ?= 1
ARGS ?=
export ENGINE TOOLS

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format up down status proto requirements bench-decision bench-routing bench-worker bench-sim bench-sim-fidelity clean distclean

help: ## Show this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2} /^#   / {print "  " substr($$0, 4)}' Makefile

setup: ## Install all that is missing into .venv, .tools and .downstack
	@deploy/dev/setup.sh

demo: ## Set up, then run the whole system once and show what it does
	@deploy/dev/setup.sh
	@deploy/dev/demo.sh $(ARGS)

test: ## Set up, then run every test
	@deploy/dev/setup.sh
	@deploy/dev/test.sh $(ARGS)

lint: ## Check style, types, import arrows, contracts and the compose file
	@deploy/dev/lint.sh

format: ## Format Python and protobuf
	@deploy/dev/format.sh

up: ## Set up, then start everything on this machine
	@deploy/dev/setup.sh
	@.venv/bin/downstack up --engine $(ENGINE) $(ARGS)

down: ## Stop what `make up` started
	@.venv/bin/downstack down

status: ## Show what runs
	@.venv/bin/downstack status

proto: ## Generate the Python stubs from proto/
	@deploy/dev/python.sh
	@proto/generate.sh

requirements: ## Compile the locked requirements
	@deploy/dev/requirements.sh $(ARGS)

bench-routing: ## Compare placement policies on traces (TRACES=folder)
	@.venv/bin/python -m bench.routing $(if $(TRACES),--traces "$(TRACES)") $(ARGS)

bench-decision: ## Time one placement decision on 1,000 workers
	@.venv/bin/python -m bench.decision $(ARGS)

bench-sim: ## Time the simulated engine on a trace: make bench-sim TRACE=conversation_trace.jsonl
	@.venv/bin/python -m bench.sim "$(TRACE)" $(ARGS)

bench-sim-fidelity: ## Hold the simulated engine against vLLM's own scheduler on 300 workloads
	@.venv/bin/python -m bench.sim_fidelity --seeds 300 $(ARGS)

bench-worker: ## Compare the worker with calling vLLM directly
	@.venv/bin/python -m bench.worker $(ARGS)

clean: ## Remove caches and the local run's data
	@deploy/dev/clean.sh

distclean: ## Remove the environment and the tools too
	@deploy/dev/clean.sh --all
