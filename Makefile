# Two commands: `make demo` trains, samples and scores a small text-to-image model; `make test` runs the tests.
PYTHON ?= python3
BIN = .venv/bin
DEMO = runs/demo

.PHONY: demo test test-all lint types docs

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/python train.py --config configs/diffusion.py:demo --workdir $(DEMO)
	$(BIN)/python sample.py --workdir $(DEMO) --prompts_file configs/demo_prompts.txt --out $(DEMO)/samples.png
	$(BIN)/python -m zoo score --workdir $(DEMO) --num 256 --measures oracle,clip_score

test: .venv/ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: .venv/ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

docs: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir build/docs

types: .venv/ready
	$(BIN)/python -m pyright

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m tests.language
