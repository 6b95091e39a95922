# Every command sets up .venv first (scripts/bootstrap.py); once that is done it costs nothing.
#
#   PYTHON       the Python to make .venv with, 3.11 or newer
#   TORCH_INDEX  a package index to search besides for torch; https://download.pytorch.org/whl/cpu saves gigabytes
#                on a machine without a GPU
#   ARGS         more arguments for the command
#   VARIANT      of the image: cpu or cuda
#   TORCH_CPU    for `lock`: a page with links to torch's wheels without CUDA, or a folder of them
#   RUNBOOKS     for `monitoring`: the address of a copy of this repository's pages, which alerts link to
#   ENVOY        the balancer of `make balancer`

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=
RUNBOOKS ?=
VARIANT ?= cpu
TORCH_CPU ?= https://download.pytorch.org/whl/cpu/torch/
ENVOY ?= envoy

VENV_PYTHON := .venv/bin/python
# `test` runs the GPU kernels apart: in Triton's interpreter they take minutes more when coverage looks on, which leaves
# them out anyhow.
# The versions of constraints.txt, with the hash of every file, for the Python of the image.
IMAGE_LOCK := pyproject.toml --constraint constraints.txt --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 --generate-hashes --no-emit-index-url --no-emit-find-links \
    --no-annotate --custom-compile-command "make lock" --quiet
BOOTSTRAP := $(PYTHON) scripts/bootstrap.py --torch-index "$(TORCH_INDEX)"

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev serve test check lint types unit bench-smoke balancer format docs lock \
	monitoring check-rules check-image check-manifests image tools \
	sbom release-check

help: ## Show the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

serve: setup ## Serve a model: make serve ARGS="--model PATH --port N"
	@exec .venv/bin/minicpmv serve $(ARGS)

test: lint types ## Check format, lint and types, run all tests, check coverage (CI runs this)
	$(VENV_PYTHON) -m pytest $(ARGS) tests/parity/test_gpu_*.py
	$(VENV_PYTHON) -m coverage run -m pytest $(ARGS) --ignore-glob='*/parity/test_gpu_*'
	$(VENV_PYTHON) -m coverage report

check: test ## The same as make test

lint: setup-dev ## Check format and lint
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m ruff check .

types: setup-dev ## Check types
	$(VENV_PYTHON) -m mypy

unit: setup-dev ## Run the quick tests: no server, no weights
	$(VENV_PYTHON) -m pytest tests/unit $(ARGS)

bench-smoke: setup ## Start the demo, put it under load for half a minute, stop it
	.venv/bin/python -m benchmarks.smoke

balancer: setup-dev ## Two replicas behind Envoy, with a report: make balancer ENVOY=/path/to/envoy
	ENVOY="$(ENVOY)" BALANCER_REPORT="benchmarks/results/$$(date +%F)-balancer" $(VENV_PYTHON) -m pytest -v -rs tests/e2e/test_balancer.py $(ARGS)

format: setup-dev ## Put the code into its format
	$(VENV_PYTHON) -m ruff format .
	$(VENV_PYTHON) -m ruff check --fix .

docs: setup-dev ## Write the parts of docs/ that come from the code
	$(VENV_PYTHON) scripts/settings_table.py
	$(VENV_PYTHON) -m scripts.metrics_table
	$(VENV_PYTHON) -m scripts.api_reference

monitoring: setup ## Write the manifest of the alert rules and the dashboard
	$(VENV_PYTHON) -m scripts.prometheus_rule $(RUNBOOKS)
	$(VENV_PYTHON) -m scripts.dashboard

check-rules: setup-dev ## Check alert rules and dashboard; with promtool on the path, also that each alert fires
	$(VENV_PYTHON) -m pytest tests/deploy/test_rules.py tests/deploy/test_dashboard.py $(ARGS)

check-image: setup-dev ## Check Dockerfile and compose file, with what of the tools is there
	$(VENV_PYTHON) -m pytest tests/deploy/test_image.py $(ARGS)

check-manifests: setup-dev ## Render the Kubernetes manifests and hold them against their schemas, with what of the tools is there
	$(VENV_PYTHON) -m pytest tests/deploy/test_manifests.py $(ARGS)

image: ## Build the image: make image VARIANT=cuda
	docker build --tag minicpmv:$(VARIANT) --build-arg VARIANT=$(VARIANT) \
	    --build-arg VERSION="$$(sed -n 's/^VERSION = "\(.*\)"/\1/p' server/version.py)" \
	    --build-arg REVISION="$$(git rev-parse HEAD)" $(ARGS) .

sbom: setup-dev ## Write the bills of materials of both images to dist/, and check licences
	$(VENV_PYTHON) -m scripts.sbom cpu dist/minicpmv-cpu.cdx.json
	$(VENV_PYTHON) -m scripts.sbom cuda dist/minicpmv-cuda.cdx.json

release-check: sbom ## Check what must be true of a release, besides `make test`
	$(VENV_PYTHON) -m pytest -q tests/unit/test_house.py tests/unit/test_api_reference.py tests/unit/test_release.py tests/deploy
	$(VENV_PYTHON) -m scripts.release_check

tools: ## Install the checkers of deploy/tools.txt into .tools
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --requirement deploy/tools.txt

lock: setup-dev ## Pin the versions in constraints.txt and deploy/image anew: make lock ARGS=--upgrade for newer ones
	$(VENV_PYTHON) -m pip install --quiet uv
	$(VENV_PYTHON) -m uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras \
	    --annotation-style line --custom-compile-command "make lock" --output-file constraints.txt --quiet $(ARGS)
	sed -n 's/^torch==\([^ ]*\).*/torch==\1+cpu/p' constraints.txt > .venv/torch-cpu.txt
	$(VENV_PYTHON) -m uv pip compile $(IMAGE_LOCK) --output-file deploy/image/cuda.txt
	$(VENV_PYTHON) -m uv pip compile $(IMAGE_LOCK) --output-file deploy/image/cpu.txt \
	    --override .venv/torch-cpu.txt --find-links "$(TORCH_CPU)"

setup:
	@$(BOOTSTRAP)

setup-dev:
	@$(BOOTSTRAP) --extra dev
