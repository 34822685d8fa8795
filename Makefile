# Each target makes .venv first when it is missing or out of date. PYTHON can name another CPython, 3.11 to 3.13.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test quick lint types notebook examples bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## the main job on real images: train, then repeat it under other circumstances
	$(BIN)/repro-callbacks demo

test: $(STAMP)  ## every test, the slow matrix too
	$(BIN)/python -m pytest -n 2 --dist worksteal --doctest-modules tests repro_callbacks

quick: $(STAMP)  ## what a developer runs by habit
	$(BIN)/python -m pytest -n 2 --dist worksteal --doctest-modules -m "not slow and not gpu" \
		--deselect repro_callbacks/study/runs.py::repro_callbacks.study.runs.SeedStudy tests repro_callbacks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

notebook: $(STAMP)  ## run the notebook from top to bottom; fails if a cell fails
	$(BIN)/python notebooks/execute.py

examples: $(STAMP)  ## run every example that needs no download
	$(BIN)/python examples/run_all.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
