# The two commands: `make run` and `make test`. Each sets up what it needs, says what it installs, and may be repeated.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all check bench

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## set up .venv for this machine (BUILD=cpu|cuda overrides the choice by hardware)
	@$(PYTHON) deploy/setup.py

run: setup ## set up, then run the main job: a language model learns from its own rollouts
	@.venv/bin/ratchet run configs/quickstart.yaml

test: ## set up what tests need too, then run every suite, shortened
	@$(PYTHON) deploy/setup.py --tests
	@scripts/test

test-all: ## the same at full length
	@$(PYTHON) deploy/setup.py --tests
	@scripts/test --all

check: ## format, lint, types, import floors, unit tests: one line each
	@$(PYTHON) deploy/setup.py --tests
	@scripts/check

bench: ## run the benchmarks and compare with their baselines
	@$(PYTHON) deploy/setup.py --tests
	@scripts/bench
