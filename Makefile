# Everything a contributor or a first-time user runs. `make demo` and `make test` need only Python 3.11+, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed

.PHONY: demo test test-slow test-vllm test-browser lint bench docs clean

$(STAMP): pyproject.toml constraints.txt peers.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# The peers that tests and benchmarks compare with; what they require is here, or older than what works.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r peers.txt
	touch $@

demo: $(STAMP)  ## the main job, start to end, on the bundled playground model
	$(BIN)/persona demo

test: $(STAMP)  ## the default test suite (about ten minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

test-slow: $(STAMP)  ## what takes minutes: retraining a small base, long kill runs
	$(BIN)/python -m pytest -q -m slow

# vLLM holds transformers to older releases, so it has an environment of its own, with this package for its plugin.
$(VLLM_STAMP): vllm.txt pyproject.toml tests/vllm/mend_environment.py
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r vllm.txt
	$(VLLM_VENV)/bin/python tests/vllm/mend_environment.py
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

test-vllm: $(STAMP) $(VLLM_STAMP)  ## exports, plugin and servers against the real vLLM, on the processor
	$(BIN)/python -m pytest -q -m vllm tests/vllm

test-browser: $(STAMP)  ## the page of `diff --html` in a real browser; needs Chromium and its driver (Debian: chromium-driver)
	$(BIN)/python -m pytest -q -m browser tests/browser

lint: $(STAMP)
	$(BIN)/ruff check personality tests benchmarks examples
	$(BIN)/ruff format --check personality tests benchmarks examples
	$(BIN)/mypy --strict

bench: $(STAMP)  ## side-by-side timings; prints tables
	$(BIN)/python -m benchmarks

docs: $(STAMP)  ## rewrite the generated pages of docs/
	$(BIN)/python -m personality.cli.reference docs/cli.md

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
