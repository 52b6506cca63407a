# EditForge. `make erase CONCEPT=violin` and `make test` work on a bare clone.

PYTHON ?= python3
TORCH ?= torch==2.13.0
CONCEPT ?= violin
OUTPUT ?= runs/$(shell echo "$(CONCEPT)" | tr 'A-Z ' 'a-z-')
BIN := .venv/bin
# One thread per test process: two processes with two threads each fight over two cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# Whole files, in the order of tests/conftest.py: the longest first.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: joint help erase test test-slow test-gpu style quality speed full-size benchmark card-preview sizes docs-check clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

erase: .venv/.installed  ## erase CONCEPT=violin from the embedded model
	$(BIN)/editforge erase "$(CONCEPT)" --output "$(OUTPUT)"

test: .venv/.installed  ## the test suite, minutes
	$(TEST_ENV) $(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-slow: .venv/.installed  ## everything, including the slow suites
	$(TEST_ENV) $(BIN)/python -m pytest $(WORKERS)

test-gpu: .venv/.installed  ## the tests that need CUDA alone; fails without a GPU
	$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("no CUDA GPU here: nothing was tested")'
	$(TEST_ENV) EDITFORGE_GPU_TESTS_ON=cuda $(BIN)/python -m pytest -m gpu tests/test_gpu.py

style: .venv/.installed  ## format and fix
	$(BIN)/ruff check --fix editforge tests benchmarks
	$(BIN)/ruff format editforge tests benchmarks

quality: .venv/.installed  ## lint, format and type checks
	$(BIN)/ruff check editforge tests benchmarks
	$(BIN)/ruff format --check editforge tests benchmarks
	$(BIN)/mypy

speed: .venv/.installed  ## time each part against its floor: docs/performance.md
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/align_speed.py

full-size: .venv/.installed  ## erase on SD 1.4- and SDXL-shaped models: 30 GB of disk, docs/performance.md
	$(BIN)/python benchmarks/full_size.py

benchmark: .venv/.installed  ## the DEV table of the README: benchmarks/dev_table.py
	$(BIN)/python benchmarks/dev_table.py

joint: .venv/.installed  ## ten, fifty and a hundred names at once: benchmarks/joint.py, docs/joint.md
	$(BIN)/python benchmarks/joint.py --methods default uce speed

card-preview: .venv/.installed  ## print the card of OUTPUT
	@cat "$(OUTPUT)/package/lora/README.md"

docs-check: .venv/.installed  ## every command and recipe in the documentation
	$(TEST_ENV) $(BIN)/python -m pytest -q tests/test_docs.py

sizes:  ## modules over 250 lines
	@git ls-files 'editforge/*.py' | xargs wc -l | awk '$$1 > 250 && $$2 != "total"' | sort -rn

clean:  ## remove what make made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
