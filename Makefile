# One command each, set-up included: `make demo`, `make test`, `make check`, `make bench`, `make docs`,
# `make paper`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench peers docs paper browser clean

demo: $(READY)
	$(BIN)/stablerank demo

# A process a core, each test file in one of them: what a file prepares is prepared once.
test: $(READY) browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/telemetry_cost.py
	$(BIN)/python benchmarks/measure_coverage.py
	$(BIN)/python benchmarks/measure.py
	$(BIN)/python benchmarks/measure_scale.py

# The tools that `stablerank measure` is compared with, in an environment of their own.
peers:
	$(shell command -v python3.12 || echo $(PYTHON)) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -c constraints.txt torch
	.venv-peers/bin/python -m pip install --quiet -r benchmarks/peers.txt

docs: $(READY)
	$(BIN)/python scripts/write_results.py --check
	$(BIN)/python scripts/check_docs.py

# The paper, as a PDF and as an HTML page, every number from a result.
paper: $(READY)
	$(BIN)/python scripts/make_paper.py build

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(READY)

# Chromium for the report's browser test: installed where root allows, else that test skips and says why.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; \
	else echo "no Chromium and no root: the browser test will skip"; fi

clean:
	rm -rf $(VENV) .venv-peers build src/*.egg-info
