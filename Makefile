# Everything a contributor or a first-time user runs. `make demo` and `make test` need only Python 3.11+, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint bench docs clean

$(STAMP): pyproject.toml constraints.txt peers.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# The peers that tests and benchmarks compare with; what they require is here, or older than what works.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r peers.txt
	touch $@

demo: $(STAMP)  ## the main job, start to end, on the bundled playground model
	$(BIN)/persona demo

test: $(STAMP)  ## the default test suite (under 8 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

test-slow: $(STAMP)  ## what takes minutes: retraining a small base, long kill runs
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check personality tests benchmarks examples
	$(BIN)/ruff format --check personality tests benchmarks examples
	$(BIN)/mypy --strict

bench: $(STAMP)  ## side-by-side timings; prints tables
	$(BIN)/python -m benchmarks

docs: $(STAMP)  ## rewrite the generated pages of docs/
	$(BIN)/python -m personality.cli.reference docs/cli.md

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
