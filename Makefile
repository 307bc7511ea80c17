# One entry for everything; `make` alone lists the targets.

SHELL := bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup servers demo test format lint types layers unit soak test-ray bench bench-memory bench-bulk bench-redis bench-limits bench-priority bench-cost bench-plan docs pictures lock clean

VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.ready-dev
# What the tests have installed serves the demo as well.
DEMO := $(if $(wildcard $(DEV)),$(DEV),$(VENV)/.ready-demo)
AIMOCK := 02_src/tests/aimock
NODE := $(AIMOCK)/node_modules/.ready
# Two targets at a time; what each prints stays in one piece where make can do that (since 4.0).
TOGETHER = $(MAKE) --no-print-directory -j2
IN_ONE_PIECE := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# Whoever forbids Python to keep what it compiled pays for it with every process that the tests start.
unexport PYTHONDONTWRITEBYTECODE
TYPED := 02_src/llm_gateway 02_src/llm_gateway_pytest.py 02_src/tests 02_src/tools

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv and all that the tests need; done once
	+@$(TOGETHER) servers $(DEV) $(NODE)

servers:
	@02_src/tools/prometheus.sh
	@02_src/tools/redis.sh
	@02_src/tools/postgres.sh

demo: $(DEMO) ## ask a small local model 40 real questions: no key, no server
	@$(BIN)/python 02_src/tools/demo.py

test: setup ## all that must pass: format, lint, types, layers, tests with coverage
	+@$(TOGETHER) $(IN_ONE_PIECE) types format lint layers
	@echo "==> the local model that some tests ask"
	@$(BIN)/llm-gateway pull
	@echo "==> tests"
	@$(BIN)/pytest -q -n 2 --cov --cov-report=term

format: $(DEV)
	@echo "==> format"
	@$(BIN)/ruff format --check .

lint: $(DEV) ## ruff
	@echo "==> lint"
	@$(BIN)/ruff check .

types: $(DEV) ## mypy, strict
	@echo "==> types"
	@$(BIN)/mypy $(TYPED)

layers: $(DEV) ## each room imports only from the floors below it
	@echo "==> layers"
	@$(BIN)/lint-imports

unit: $(DEV) ## the fast tests alone
	@$(BIN)/pytest -q 02_src/tests/unit 02_src/tests/property

soak: setup ## kill jobs a thousand times, a fifth of them in the batch lane; stop a thousand; ten thousand storms
	@LLM_GATEWAY_KILLS=800 LLM_GATEWAY_BATCH_KILLS=200 LLM_GATEWAY_JOBS=1000 LLM_GATEWAY_STORMS=10000 \
		$(BIN)/pytest -q -n 2 02_src/tests/property/test_jobs_runs_laws.py \
		02_src/tests/integration/test_jobs_killed.py 02_src/tests/integration/test_batches_killed.py \
		02_src/tests/property/test_gateway_laws.py

test-ray: $(DEV) ## answer datasets in a real Ray, in an environment of its own (half a gigabyte)
	@PYTHONPATH=02_src/tests $(BIN)/python -m with_ray.run

bench: $(DEV) ## speed, beside bare LangChain, LiteLLM, TensorZero and any-llm
	@$(BIN)/python 02_src/tests/bench/run.py

bench-memory: $(DEV) ## memory over 200,000 requests on each transport, and what a shutdown leaves
	@PYTHONPATH=02_src/tests $(BIN)/python -m bench.memory

bench-bulk: $(DEV) ## what a durable job costs, beside others, and whether a million rows stay flat
	@PYTHONPATH=02_src/tests $(BIN)/python -m bench.bulk $(BULK)

bench-redis: $(DEV) ## four processes on limits that one Redis counts
	@$(BIN)/python 02_src/tests/bench/limits_redis.py

bench-limits: $(DEV) ## how near to a limit, and how many 429s, beside LangChain's limiter and LiteLLM
	@PYTHONPATH=02_src/tests $(BIN)/python -m bench.limits_bench

bench-priority: $(DEV) ## what HIGH waits beside a flood of LOW, and how agents share
	@PYTHONPATH=02_src/tests $(BIN)/python -m bench.priority_bench

bench-cost: $(DEV) ## what limits and order cost in CPU and memory
	@PYTHONPATH=02_src/tests $(BIN)/python -m bench.cost_bench

bench-plan: $(DEV) ## whether a plan's memory stays flat at a million rows
	@PYTHONPATH=02_src/tests $(BIN)/python -m bench.plan_bench

docs: $(DEV) ## write the reference from the docstrings
	@$(BIN)/python 02_src/tools/reference.py

pictures: $(DEV) ## draw how pace and order work
	@$(BIN)/python 02_src/tools/pictures.py

lock: $(DEV) ## pin the requirements anew; LOCK=--upgrade takes the newest versions
	@02_src/tools/lock.sh $(LOCK)

clean: ## remove what the other targets made, but no journal
	rm -rf $(VENV) .venv-bench $(AIMOCK)/node_modules 04_logs/demo .coverage .coverage.* build dist
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.ready-%: requirements/%.txt pyproject.toml 02_src/tools/setup.sh
	@02_src/tools/setup.sh $*

$(NODE): $(AIMOCK)/package-lock.json 02_src/tools/node.sh | $(DEV)
	@02_src/tools/node.sh $(AIMOCK)
