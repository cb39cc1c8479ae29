# make demo    fit the people in a photo (PHOTO=path, or an example) and write pictures to out/demo
# make test    format, lint, types and tests
PYTHON ?= python3
VENV ?= .venv
PHOTO ?=
OUT ?= out/demo
PYTEST_ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.fitkit-installed
EXAMPLE := out/example/astronaut.png

# Small tensors are slower on several threads than on one, by far so on shared cores.
demo test bench: export OMP_NUM_THREADS = 1
demo test bench: export OPENBLAS_NUM_THREADS = 1
demo test bench: export MKL_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help env theseus demo test lint types wheel bench clean distclean

help:
	@echo 'make demo [PHOTO=file]  fit the people in a photo, write overlay, mesh and report to $(OUT)'
	@echo 'make test               ruff, mypy and pytest (PYTEST_ARGS="-k camera")'
	@echo 'make lint, make types   only ruff, only mypy'
	@echo 'make wheel              build the wheel, install it in an empty environment, use it from there'
	@echo 'make theseus            the reference solver theseus-lm, into the same environment'
	@echo 'make bench              every program in benchmarks/, short form'
	@echo 'make clean, distclean   remove what was built; distclean also removes $(VENV)'
	@echo 'PYTHON=python3.12 chooses the interpreter of $(VENV): 3.10, 3.11 or 3.12'

# One environment for everything here. MediaPipe 0.10.14 sets the upper bound on Python.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 10) <= v < (3, 13) else \
	  "This needs Python 3.10, 3.11 or 3.12 (MediaPipe has no later wheel); $(PYTHON) is %d.%d. Try: make PYTHON=python3.12" % v[:2])'
	@echo 'Installing into $(VENV): PyTorch and MediaPipe are large, the first time takes minutes'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,detect,demo]' -c constraints.txt
	@touch $@

env: $(READY)

# A plain `pip install theseus-ai` fails: it asks for a compiler's CHOLMOD, which its dense solvers do without.
theseus: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check scipy pyyaml -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	  theseus-ai==0.2.3 torchlie==0.1.0 torchkin==0.1.1 urdf-parser-py==0.0.4

$(EXAMPLE): | $(READY)
	@mkdir -p $(@D)
	@$(BIN)/python -c 'import sys; from PIL import Image; from skimage import data; Image.fromarray(data.astronaut()).save(sys.argv[1])' $@

demo: export FITKIT_PHOTO = $(or $(PHOTO),$(EXAMPLE))
demo: $(READY) $(if $(PHOTO),,$(EXAMPLE))
	@$(BIN)/fitkit fit "$$FITKIT_PHOTO" --out '$(OUT)'
	@echo 'Look at $(OUT)/overlay.png, then open $(OUT)/report.html'

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest $(PYTEST_ARGS)

wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --quiet --outdir dist
	tools/smoke_wheel.sh dist/*.whl $(BIN)/python

bench: $(READY)
	@mkdir -p out/bench
	@set -e; for program in benchmarks/*.py; do \
	  test -e "$$program" || { echo 'benchmarks/ holds no program'; break; }; \
	  name=$$(basename "$$program" .py); \
	  case "$$name" in _*) continue;; kinematics|render) ;; *) test -n "$$FITKIT_DATA" || { \
	    echo "== $$name left out: FITKIT_DATA does not name the folder of photos and recordings"; continue; };; esac; \
	  echo "== $$name"; $(BIN)/python "$$program" --quick --json "out/bench/$$name.json"; \
	done

clean:
	rm -rf build dist out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
