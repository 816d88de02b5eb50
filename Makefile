# specbatch: every habit is one command. `make help` lists them.
SHELL := /bin/sh
PYTHON ?= python3
TORCH_VERSION := 2.13.0
# For the tests: its interpreter runs the kernels for GPUs on a CPU. A torch for GPUs brings the version that it needs.
TRITON := triton>=3.9,<4; platform_system == "Linux" and platform_machine == "x86_64"
OPENVINO_GENAI_VERSION := 2026.4.1.0
OPTIMUM_INTEL_VERSION := 2.2.0
MKDOCS_MATERIAL_VERSION := 9.8.1
PIP_AUDIT_VERSION := 2.10.1
CYCLONEDX_VERSION := 11.12.0
OPENVINO_ENV ?= $(HOME)/.cache/specbatch/openvino
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "specbatch needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==$(TORCH_VERSION)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

$(STAMP)-triton: $(STAMP)
	@$(BIN)/python -c 'import triton' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TRITON)'
	@touch $@

.PHONY: install
install: $(STAMP) ## Create .venv with everything pinned, and specbatch in it

.PHONY: demo
demo: $(STAMP) ## Run the main job on examples/prompts.parquet with the bundled pair, and its report
	@$(BIN)/python examples/demo.py

.PHONY: test
test: $(STAMP)-triton ## Run the test suite, in two processes
	$(BIN)/python infra/run_tests.py

.PHONY: lint
lint: $(STAMP) ## Check style, formatting and the import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.PHONY: format
format: $(STAMP) ## Rewrite files in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: type
type: $(STAMP) ## Check types (mypy, strict)
	$(BIN)/mypy

.PHONY: bench
bench: $(STAMP) ## Measure the engine against its peers; writes benchmarks/results/ (BENCH="--caps 8 --repeats 1" for less)
	$(BIN)/python benchmarks/bench_engine.py $(BENCH)

.PHONY: bench-overhead
bench-overhead: $(STAMP) ## Measure the engine's step against its own matrix products
	$(BIN)/python benchmarks/bench_overhead.py $(BENCH)

# On a machine without network: python3 benchmarks/bench_gpu.py, with the Python that has torch.
.PHONY: bench-gpu
bench-gpu: $(STAMP) ## Measure decoding on a GPU against its memory roof and its peers, in ten minutes (BENCH="--seconds 300" for less)
	$(BIN)/python benchmarks/bench_gpu.py $(BENCH)

.PHONY: bench-jobs
bench-jobs: $(STAMP) ## Measure whole jobs: against the engine alone, against Ray Data, and by number of shards
	$(BIN)/python benchmarks/bench_planning.py
	$(BIN)/python benchmarks/bench_coordinator.py
	$(BIN)/python benchmarks/bench_jobs.py $(BENCH)

# torchvision comes along for models with images only, and as built for another torch it breaks the import.
.PHONY: bench-openvino
bench-openvino: ## Make the environment of its own in which `make bench` runs OpenVINO GenAI
	$(PYTHON) -m venv $(OPENVINO_ENV)
	$(OPENVINO_ENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		"torch==$(TORCH_VERSION)" "openvino-genai==$(OPENVINO_GENAI_VERSION)" "optimum-intel==$(OPTIMUM_INTEL_VERSION)"
	$(OPENVINO_ENV)/bin/python -m pip uninstall --quiet --yes torchvision

.PHONY: test-quantization
test-quantization: $(STAMP) ## Run the tests of quantized weights with their packages, which a folder of their own takes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/quantization \
		accelerate bitsandbytes compressed-tensors loguru psutil torchao
	PYTHONPATH=build/quantization $(BIN)/python -m pytest tests/specdec/test_quantization.py

.PHONY: test-all
test-all: $(STAMP)-triton ## Run every test there is, the long ones and the chaos too (hours on 2 cores)
	$(BIN)/python -m pytest -m ""

.PHONY: chaos
chaos: $(STAMP) ## Kill real jobs at random moments and check what they leave (CHAOS_RUNS=25 CHAOS_SEED=7 for fifty others)
	$(BIN)/python -m pytest tests/chaos tests/simulation -m chaos -s

.PHONY: docs
docs: $(STAMP) ## Write what the documents take from the code, and build them as a site in site/
	$(BIN)/python infra/make_docs.py
	@$(BIN)/python -c 'import material' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check "mkdocs-material==$(MKDOCS_MATERIAL_VERSION)"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

.PHONY: package
package: $(STAMP) ## Build sdist and, from it, the wheel
	$(BIN)/python -m build --outdir dist .

# The list first: it needs nobody. An advisory service that cannot be reached is exit 3 of the second line, and no success.
.PHONY: audit
audit: $(STAMP) ## Write dist/sbom.cdx.json (CycloneDX), and look for known vulnerabilities of what is locked
	@$(BIN)/python -c 'import pip_audit, cyclonedx' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		"pip-audit==$(PIP_AUDIT_VERSION)" "cyclonedx-python-lib[json-validation]==$(CYCLONEDX_VERSION)"
	$(BIN)/python infra/make_sbom.py --torch $(TORCH_VERSION) --output dist/sbom.cdx.json
	$(BIN)/python infra/audit.py --torch $(TORCH_VERSION)

.PHONY: lock
lock: ## Resolve the lock files again; LOCK=--keep upgrades nothing (installs uv into .venv)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python infra/make_lock.py --torch $(TORCH_VERSION) $(LOCK)

.PHONY: clean
clean: ## Remove what the commands above made, the environment included
	rm -rf $(VENV) .demo dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
