# Two commands do it all: `make run` and `make test`. The logic is in tools/, so that
# it works with the make and the shell of any Linux or macOS.

PYTHON = python3
PROFILE = cpu
ONLY =
PART =
RESUME =

# glibc gives freed memory back at once and asks for it again a step later; for small
# models on a CPU that costs a fifth of the time. Other systems ignore these.
export MALLOC_MMAP_THRESHOLD_ = 33554432
export MALLOC_TRIM_THRESHOLD_ = 2147483647
# OpenMP's threads wait for work by spinning, which slows down whatever else wants the
# cores: a second notebook, a browser. So they spin for a moment only, and then sleep.
# Yours stays, if set.
ifeq ($(origin OMP_WAIT_POLICY), undefined)
OMP_WAIT_POLICY = passive
GOMP_SPINCOUNT ?= 10000
export OMP_WAIT_POLICY GOMP_SPINCOUNT
endif

.PHONY: help run run-twice test test-quick coverage lab notebooks notebooks-check studies studies-anew readme bench site test-colab release-check clean setup

help:
	@echo "make run              execute all notebooks, results in build/run/index.html"
	@echo "  PROFILE=smoke         a quick look that every cell runs (default: cpu)"
	@echo '  ONLY="01 02"          some notebooks'
	@echo "  RESUME=1              keep what an interrupted run has finished"
	@echo "make run-twice        every cell twice in a row (smoke; ONLY=...; half an hour)"
	@echo "make test             everything that has to hold before a change is accepted"
	@echo "  PART=training         a part of it, as CI runs it on a machine of its own"
	@echo "make test-quick       the toolkit's tests without the slow ones (4 minutes)"
	@echo "make coverage         the same, and which lines of the toolkit it left out"
	@echo "make lab              open JupyterLab on the first notebook"
	@echo "make notebooks        build notebooks/*.ipynb from notebooks/source/ (ONLY=...)"
	@echo "make notebooks-check  are they built from their sources?"
	@echo "make studies          run one seed of every study anew and compare (80 minutes)"
	@echo "make studies-anew     run all seeds anew and publish what comes out (hours)"
	@echo "make readme           refresh the tables of README.md and docs/results.md"
	@echo "make bench            time and memory against other libraries (90 minutes; ONLY=...)"
	@echo "make site             build the course's site, build/site/html/index.html"
	@echo "make test-colab       package and notebooks with the versions Colab ships"
	@echo "make release-check    changelog, sdist and wheel, tried in an empty environment"
	@echo "make clean            remove what was built; the environment stays"

setup:
	@$(PYTHON) tools/setup_env.py

run: setup
	@.venv/bin/python tools/run_notebooks.py $(if $(RESUME),--resume) --profile $(PROFILE) --only $(ONLY)

run-twice: PROFILE = smoke
run-twice: setup
	@.venv/bin/python tools/run_notebooks.py --twice --profile $(PROFILE) --only $(ONLY)

test: setup
	@.venv/bin/python tools/test_all.py $(PART:%=--part=%)

test-quick: setup
	@.venv/bin/python tools/test_all.py --quick

coverage: setup
	@mkdir -p build
	@.venv/bin/python tools/test_all.py --coverage

lab: setup
	@JUPYTER_PREFER_ENV_PATH=1 .venv/bin/python -m jupyterlab notebooks/00_start_here.ipynb

notebooks: setup
	@.venv/bin/python tools/build_notebooks.py build --only $(ONLY)
	@.venv/bin/python tools/readme_tables.py

notebooks-check: setup
	@.venv/bin/python tools/build_notebooks.py check

studies: setup
	@.venv/bin/python tools/run_studies.py --recheck

studies-anew: setup
	@.venv/bin/python tools/run_studies.py; status=$$?; \
	.venv/bin/python tools/readme_tables.py && exit $$status

readme: setup
	@.venv/bin/python tools/readme_tables.py

bench:
	@$(PYTHON) tools/setup_env.py --bench
	@.venv-bench/bin/python benchmarks/run.py --only $(ONLY)

site: setup
	@$(PYTHON) tools/setup_env.py --site
	@.venv-site/bin/python tools/build_site.py
	@.venv-site/bin/python -m pytest -q tests/repo/test_site.py

test-colab: setup
	@$(PYTHON) tools/setup_env.py --colab
	@.venv-colab/bin/python tools/test_all.py --colab

release-check: setup
	@.venv/bin/python tools/release_check.py

clean:
	rm -rf build dist
