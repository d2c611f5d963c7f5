# make run: the default run from nothing. make resume: after a kill. Every target installs what it needs.
PYTHON ?= python3
CORES ?= all
VENV := .venv
BIN := $(VENV)/bin
DOCS_VENV := .venv-docs
QUANTIZERS_VENV := .venv-quantizers

.PHONY: run resume test test-all soak test-slurm test-quantizers lint lint-code lint-types lint-workflow lint-lock format envs docs docs-site docs-types bench clean

# ARGS are passed on: make run ARGS="--configfile mine.yaml"
run: $(VENV)/installed
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete $(ARGS)

# A killed run leaves a lock, jobs that go on writing, and perhaps unfinished files.
resume: $(VENV)/installed
	$(BIN)/outlier-features recover
	$(BIN)/snakemake --unlock $(ARGS)
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete $(ARGS)

# PYTEST_ARGS=--no-skips makes a failure of a test that is skipped for want of a browser or root.
# What takes long stands first, so that the many small files of tests/unit keep all processes busy to the end. Of the
# three before, tests/every_type compiles what the complete run that tests/workflow share needs, too, while another
# process is in the browser.
TEST := $(BIN)/python -m pytest -n auto
test: $(VENV)/installed
	$(TEST) --dist loadfile --no-loadscope-reorder tests/every_type tests/browser tests/workflow tests/unit $(PYTEST_ARGS)

# What takes hours: every type of model that transformers has, the catalog's real models, every damage, the soak and, where it can be, a SLURM cluster.
test-all: test
	$(TEST) --dist worksteal tests/every_type -m slow $(PYTEST_ARGS)
	$(TEST) --dist loadfile tests/workflow tests/unit -m slow $(PYTEST_ARGS)
	$(MAKE) soak
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then $(MAKE) test-slurm; fi

# Kills the default run at 50 random moments: about an hour. SOAK_ARGS="--kills 5 --seed 1"
soak: $(VENV)/installed
	$(BIN)/python tests/soak.py $(SOAK_ARGS)

# As root on Debian: brings a SLURM cluster up on this machine and runs the default run on it; some ten minutes.
test-slurm: $(VENV)/installed
	$(BIN)/python -m pytest -s tests/slurm

# What a run exports, read by llm-compressor, compressed-tensors and bitsandbytes, in an environment of their own.
test-quantizers: $(QUANTIZERS_VENV)/installed
	PYTHONPATH=workflow $(QUANTIZERS_VENV)/bin/python -m pytest tests/quantizers

# Five parts that run beside each other: make -j lint
lint: lint-code lint-types lint-workflow lint-lock docs-site

lint-code: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(VENV)/installed
	$(BIN)/mypy

lint-workflow: $(VENV)/installed
	$(BIN)/snakefmt --check Snakefile workflow/Snakefile rules
	$(BIN)/python tests/lint_workflow.py

lint-lock: $(VENV)/installed
	$(BIN)/python tests/audit_lock.py
	$(BIN)/python tests/audit_lock.py docs/requirements.lock
	$(BIN)/python envs/generate.py --check

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/Snakefile rules

envs: $(VENV)/installed
	$(BIN)/python envs/generate.py

docs: $(VENV)/installed
	$(BIN)/python docs/generate.py
	$(BIN)/python benchmarks/on_paper.py --write

# The pages of docs/ as a site, build/docs/index.html; a broken link fails. It has an environment of its own.
docs-site: $(DOCS_VENV)/installed
	$(DOCS_VENV)/bin/sphinx-build -q -W --keep-going -b html docs build/docs

# docs/architectures.md: a run on every type of model that transformers has; half an hour of two cores.
docs-types: $(VENV)/installed
	$(BIN)/python tests/every_type/table.py $(TYPES)

bench: $(VENV)/installed
	$(BIN)/python benchmarks/detection.py
	$(BIN)/python benchmarks/count.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/rules.py
	$(BIN)/python benchmarks/waiting.py
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/layerwise.py
	$(BIN)/python benchmarks/neurons.py

# What pip would compile ahead takes longer than all else of it, and most of it is never imported.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: found Python " + sys.version.split()[0] + ", expected 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

$(DOCS_VENV)/installed: docs/requirements.lock
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet -r docs/requirements.lock
	touch $@

# Of what llm-compressor asks for, what moves and calibrates weights on GPUs is left out; the run's packages stand behind.
$(QUANTIZERS_VENV)/installed: tests/quantizers/requirements.txt $(VENV)/installed
	$(PYTHON) -m venv $(QUANTIZERS_VENV)
	$(QUANTIZERS_VENV)/bin/python -m pip install --quiet -r tests/quantizers/requirements.txt
	$(QUANTIZERS_VENV)/bin/python -m pip install --quiet --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0 bitsandbytes==0.50.2
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(QUANTIZERS_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/run.pth
	touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) $(QUANTIZERS_VENV) .snakemake results build
