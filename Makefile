# The two commands: `make demo` (the main job on this machine) and `make test`. Both set up what they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
BENCH := services/common/benchmarks:services/jobs/benchmarks:reward_server/benchmarks:teacher_server/benchmarks:trainer/benchmarks
SOURCES := trainer/src:teacher_server/src:reward_server/src:services/client/src:services/common/src:services/local/src
# One thread per process: the stack's processes share the cores, and small models run slower on more.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
# Hundreds of our programs start in one run of the tests: compiled once, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup engine clients fp8 models paper paper-full demo test test-fast test-slow bench-reward bench-reward-gpu bench-teacher bench-trainer bench-trainer-gpu bench-builds chaos compose-test lint format types lock audit clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## .venv with everything but the engine (cached by lock: a second clone installs nothing)
	@requirements/install.sh dev

engine: ## the vLLM environment, linked as .engine (CPU build)
	@requirements/install.sh engine

clients: ## the clients of other trainers, linked as .clients (for tests)
	@requirements/install.sh clients

fp8: ## torchao, linked as .fp8 (for slow tests)
	@requirements/install.sh fp8

demo: setup ## question + answer → explanation → reward → data set, on tiny models made here
	@.venv/bin/rlt demo

models: setup ## train the committed tiny base models again, seed and gate printed
	$(PY) -m rlt_trainer tiny base --out trainer/src/rlt_trainer/tiny/base --replace
	$(PY) -m rlt_trainer tiny parts-base --out trainer/src/rlt_trainer/tiny/parts/base --replace

paper: setup ## the paper in miniature, one seed of the parts task, below .rlt-paper/small (20 minutes)
	PYTHONPATH=$(BENCH):trainer/experiments $(PY) -m rlt_paper small

paper-full: setup ## three seeds of both tasks, every arm that has no record; writes docs/paper (hours)
	PYTHONPATH=$(BENCH):trainer/experiments $(PY) -m rlt_paper full
	PYTHONPATH=$(BENCH):trainer/experiments $(PY) -m rlt_paper report

# Types are checked beside the tests, which leave a core idle now and then.
test: setup engine clients lint ## everything but the slow tests
	@$(MAKE) --no-print-directory --jobs=2 types test-fast

test-fast: setup engine clients
	$(PY) -m pytest -m "not slow" -n 2 --durations=40

test-slow: setup engine clients fp8 ## the slow tests alone
	PYTHONPATH=$$(echo .fp8/lib/python*/site-packages) $(PY) -m pytest -m slow -n 2 --durations=40

bench-reward: setup engine ## the reward engine and service against their baselines; writes docs/benchmarks.md (30 minutes)
	PYTHONPATH=$(BENCH) OMP_NUM_THREADS=$$(nproc) $(PY) -m reward_bench cpu http memory vllm report

bench-reward-gpu: ## the same on a GPU; PYTHON=… has PyTorch and transformers
	PYTHONPATH=$(BENCH):reward_server/src:services/client/src:services/common/src $(or $(PYTHON),python3) -m reward_bench gpu

bench-teacher: setup engine ## the teacher service against its bare engine; writes docs/benchmarks.md (20 minutes)
	PYTHONPATH=$(BENCH) $(PY) -m teacher_bench overhead overlap memory real report

bench-trainer: setup engine ## waiting for rewards, publishing, and a step against TRL alone; writes docs/benchmarks.md (20 minutes)
	PYTHONPATH=$(BENCH) $(PY) -m trainer_bench wait publish step report

bench-trainer-gpu: ## steps of models of real size on one GPU; PYTHON=… has what trainer, teacher and reward server need
	PYTHONPATH=$(BENCH):$(SOURCES) $(or $(PYTHON),python3) -m trainer_bench gpu

bench-builds: setup ## what builds cost at size, the database alone and end to end; writes docs/benchmarks.md (45 minutes)
	PYTHONPATH=$(BENCH) $(PY) -m jobs_bench flush browse claim submit growth export throughput report

chaos: setup ## builds while everything is killed at random; SEED=… repeats a run, RUNS=… makes more; ROLLING=2 replaces everything twice
	PYTHONPATH=tests $(PY) -m chaos $(if $(ROLLING),--rolling $(ROLLING)) $(if $(SEED),--seed $(SEED)) --runs $(or $(RUNS),1)

compose-test: setup ## every image built; the stack used, attacked, killed, lost and restored, trained with, replaced; ARGS=--no-build takes what is there
	PYTHONPATH=tests $(PY) -m compose $(ARGS)

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: setup ## write the code the way `make lint` wants it
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: setup
	@$(PY) -m mypy

audit: ## advisories against what the locks name; needs an advisory service, and fails where it reaches none
	@requirements/install.sh audit
	@.audit/bin/python requirements/audit.py

lock: ## resolve requirements/*.in again (needs uv)
	requirements/lock.sh dev engine clients fp8 audit build jobs reward teacher trainer

clean: ## remove what was made in this checkout; the user cache stays
	rm -rf .venv .engine .clients .fp8 .rlt .rlt-demo .rlt-paper .mypy_cache .ruff_cache .pytest_cache .hypothesis
