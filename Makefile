# Everything a newcomer needs. `make` alone lists the targets.
SHELL := bash
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test levels newest check format lock schemas bench drill quality clean
help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## .venv with the locked packages and this package
	@scripts/setup

demo: setup ## the whole system with live traffic; Ctrl-C stops all of it
	@exec $(BIN)/aif up --demo

test: setup ## all tests; those on real Kafka run when Java 17 and Maven are there, those in a browser with Chromium
	@scripts/system-packages
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The numbers of another CPU, on this one: no vector code beyond SSE in the kernels, torch, MKL, oneDNN and OpenBLAS.
PLAIN := AIF_CPU_CAPABILITY=portable ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
	ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem
NUMERIC := tests/unit/kernels tests/unit/model tests/unit/explain tests/unit/retrieval tests/property/model
levels: setup ## the numeric tests once more, without this CPU's vector instructions (1 to 2 minutes)
	$(PLAIN) $(BIN)/python -m pytest -n 2 --dist loadfile $(NUMERIC)

newest: setup ## the unit tests with the newest packages that pyproject.toml allows, in an environment that is thrown away
	@scripts/newest

check: setup ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## rewrite the sources in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: setup ## topics/schemas, topics/asyncapi.yaml from the event types
	$(BIN)/python -m aif_stream.bus.schemas

bench: setup ## benchmarks beside their peers → benchmarks/results/*.json (about 45 minutes)
	benchmarks/run

drill: setup ## kill -9, rebalance, outages, roll-outs on real Kafka → experiments/results/*drill.json (about 18 minutes)
	$(BIN)/python -m drills
	$(BIN)/python -m drills.rollout

quality: setup ## the model's quality, sweeps and costs → experiments/results, docs/experiments.md (about 45 minutes)
	experiments/quality $(MOVIELENS)

lock: setup ## requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --all-extras --generate-hashes --no-emit-index-url \
		--python-version 3.11 --custom-compile-command "make lock" --upgrade pyproject.toml -o requirements.lock

clean: ## remove what was built; caches outside the repository stay
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis aif_stream/kernels/*.so
