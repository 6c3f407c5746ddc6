# Entry points for development. `make demo` and `make test` set up .venv first.
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE # otherwise each process of a test or run compiles torch and MLflow again, in 5 s
UV := $(BIN)/uv
SPREAD := --dist loadfile --no-loadscope-reorder # in the order of tests/conftest.py: the longest files first
INSTALL := $(UV) pip install --python $(BIN)/python --quiet
PIN := $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --quiet \
	--custom-compile-command "make pins"

.PHONY: help demo test test-services test-containers test-long image check check-manifests format corpus encoders pins clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.runtime ## set up, then run the whole pipeline on the demo corpus
	$(BIN)/audioscore demo

test: .venv/.dev ## set up, then run all tests but the slow ones, doctests included
	$(BIN)/python -m pytest -n $(JOBS) $(SPREAD)

test-services: .venv/.services ## set up, then run the tests that start servers or take minutes
	$(BIN)/python -m pytest -m services -n $(JOBS) $(SPREAD)

test-containers: .venv/.dev ## set up, build the image, and run the whole pipeline in containers
	$(BIN)/python -m pytest -m containers

test-long: .venv/.services ## set up, then compare thousands of files with ffmpeg, libsndfile and LibreOffice
	$(BIN)/python -m pytest -m long -n $(JOBS) --dist worksteal

image: ## build the image of the steps, with Docker or Podman
	components/image/build.sh

check: .venv/.dev ## set up, then check lint rules, format, types, import contracts and the word list
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_words.py
	$(BIN)/hadolint components/image/Dockerfile

check-manifests: .venv/.services ## set up, then build and check the cluster manifests, offline
	$(BIN)/python -m manifests.check

format: .venv/.dev ## set up, then format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

corpus: .venv/.runtime ## create the demo corpus again and record it with DVC
	$(BIN)/python -m audioscore.demo.corpus --out data
	$(BIN)/dvc add data
	$(BIN)/dvc push --quiet data.dvc

encoders: .venv/.runtime ## train the small encoders again (about 30 minutes) and record them with DVC
	$(BIN)/python -m audioscore.demo.pretrain --out pipelines/encoders
	$(BIN)/dvc add pipelines/encoders
	$(BIN)/dvc push --quiet pipelines/encoders.dvc

pins: .venv/.bootstrap ## update the pinned requirements, with hashes
	$(PIN) --upgrade requirements/bootstrap.in -o requirements/bootstrap.txt
	$(PIN) --upgrade pyproject.toml -o requirements.txt
	$(PIN) --upgrade pyproject.toml --extra dev -c requirements.txt -o requirements/dev.txt
	$(PIN) --upgrade pyproject.toml --extra cluster -c requirements.txt -o requirements/image.txt
	$(PIN) --upgrade requirements/sbom.in -o requirements/sbom.txt
	$(PIN) --upgrade --no-deps requirements/services.in -o requirements/services.txt

clean: ## remove the files of runs and tests, but not .venv
	rm -rf .audioscore .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find audioscore components manifests pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.bootstrap: requirements/bootstrap.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	touch $@

.venv/.runtime: .venv/.bootstrap requirements.txt pyproject.toml
	$(INSTALL) --require-hashes -r requirements.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

.venv/.services: .venv/.dev requirements/services.txt
	$(INSTALL) --no-deps --require-hashes -r requirements/services.txt
	touch $@

.venv/.dev: .venv/.runtime requirements/dev.txt
	$(INSTALL) --require-hashes -r requirements/dev.txt
	touch $@
