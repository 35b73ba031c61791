# Every target sets up what it needs in .venv: with uv where it is installed, else venv and pip.

# What `make PYTHON=...` gives, else the first that fits: Apple's python3 is 3.9.
FITS := -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))'
PYTHON ?= $(or $(firstword $(foreach python,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(python) $(FITS) 2>/dev/null && echo $(python)))),python3)
VENV := .venv
BIN := $(VENV)/bin
UPSTREAM := build/upstream
FRAMES ?= 200
SINCE ?= HEAD~1
MAKING := build/making

# On an M5 and on NVIDIA's cards MLX multiplies float32 in TF32, with 10 bits, unless told otherwise.
RUN := MLX_ENABLE_TF32=0
# Two at a time, but those of a sound card alone: they measure time.
define TESTS
$(RUN) $(BIN)/pytest -m "not device" --numprocesses 2 --dist loadfile
$(RUN) $(BIN)/pytest -m device
endef
# A Mac has a GPU, and Homebrew's Python has a sitecustomize that this one would hide.
PRETENDED := $(if $(filter-out Darwin,$(shell uname)),\
	PYTHONPATH="$(CURDIR)/tests/pretended_gpu$${PYTHONPATH:+:$$PYTHONPATH}")

CODE := moshi_mlx app quantize recipes benchmarks examples tests
UV := $(shell command -v uv)
ifdef UV
INSTALL := uv pip install --quiet --python $(BIN)/python -c constraints.txt
else
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
endif

# Below ~/Documents macOS may hide dot folders and what is in them, and Python skips hidden .pth files.
UNHIDE := $(if $(filter Darwin,$(shell uname)),-@chflags -R nohidden $(VENV) 2>/dev/null)
comma := ,

.PHONY: help demo test test-gpu check mutants bench nano nano-eval constraints wheels clean

help:
	@echo "make demo         answers a spoken question: build/demo.wav"
	@echo "make test         runs the tests"
	@echo "make test-gpu     runs the tests marked gpu on the GPU, or on a pretended one where MLX has none"
	@echo "make check        runs lint, format, types and tests, as CI does"
	@echo "make mutants      changes each decision in lines newer than SINCE (HEAD~1), lists changes that no test sees"
	@echo "make bench        times a step on this machine, interleaved with Kyutai's moshi_mlx"
	@echo "make nano         trains the bundled model from scratch, in hours: build/nano (needs flite, festival, espeak-ng, npm)"
	@echo "make nano-eval    examines the bundled model and updates its card (needs the same and a C compiler)"
	@echo "make constraints  pins the newest versions that fit together: constraints.txt (needs uv)"
	@echo "make wheels       checks that every dependency has a wheel on every platform (needs uv)"
	@echo "make clean        removes what was built, .venv too"

demo: $(VENV)/runtime.stamp
	@mkdir -p build
	$(RUN) $(BIN)/moshi-local run moshi_mlx/bundled/nano/question.wav build/demo.wav --stereo --seed 0 \
		--picture build/demo.svg

test: $(VENV)/dev.stamp
	$(TESTS)

test-gpu: $(VENV)/dev.stamp
	$(RUN) $(PRETENDED) MOSHI_TEST_GPU=1 $(BIN)/pytest -m gpu

check: $(VENV)/dev.stamp
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(CODE)
	$(TESTS)

mutants: $(VENV)/dev.stamp $(VENV)/mutants.stamp
	$(RUN) $(BIN)/python -m benchmarks.mutation --since $(SINCE)

bench: $(VENV)/dev.stamp $(UPSTREAM)/stamp
	@for size in small middle; do for bits in 4 8 16; do \
		$(RUN) $(BIN)/moshi-local bench --config tests/fixtures/bench/$$size.json --bits $$bits \
			--frames $(FRAMES) --vs-upstream $(UPSTREAM)/bin/python; \
	done; done
	$(RUN) $(BIN)/moshi-local bench --model nano --frames $(FRAMES)

nano: $(MAKING)/stamp
	$(RUN) $(MAKING)/bin/python -m recipes.nano --out build/nano

nano-eval: $(VENV)/nano.stamp
	@mkdir -p build
	$(RUN) $(BIN)/python -m recipes.nano.evaluate nano --json build/nano-eval.json \
		--picture docs/nano-evaluation.svg --card moshi_mlx/bundled/nano/MODEL_CARD.md

# Nano's codec is trained with PyTorch and the reference's classes, whose pins are old: --no-deps.
$(MAKING)/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(MAKING)
	$(MAKING)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[nano]' torch einops onnxruntime
	$(MAKING)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps moshi==0.2.13
	@touch $@

# Upstream's MLX version, to compare with; its pins fit no current Python, hence --no-deps.
$(UPSTREAM)/stamp:
	$(PYTHON) -m venv $(UPSTREAM)
	$(UPSTREAM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$(if $(filter Linux,$(shell uname)),'mlx[cpu]',mlx) numpy sentencepiece huggingface_hub
	$(UPSTREAM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		moshi_mlx==0.3.0
	@touch $@

# uv takes what is installed, or fetches one.
$(BIN)/python:
ifdef UV
	uv venv --quiet --python $(if $(filter file,$(origin PYTHON)),'>=3.11$(comma)<3.15',$(PYTHON)) $(VENV)
else
	@$(PYTHON) $(FITS) 2>/dev/null || { echo "Python 3.11 to 3.14 is needed, and" \
		"$(PYTHON) is not one of them: install uv, or Python from python.org, or" \
		"say where one is: make PYTHON=/path/to/python3.13 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
endif

$(VENV)/runtime.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV): a minute or two, 0.5 GB"
	$(INSTALL) -e .
	$(UNHIDE)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp
	@echo "installing what the tests need"
	$(INSTALL) -e '.[dev]'
	$(UNHIDE)
	@touch $@

$(VENV)/mutants.stamp: $(VENV)/runtime.stamp
	$(INSTALL) -e '.[mutants]'
	$(UNHIDE)
	@touch $@

$(VENV)/nano.stamp: $(VENV)/runtime.stamp
	$(INSTALL) -e '.[nano]'
	$(UNHIDE)
	@touch $@

constraints:
	uv pip compile --quiet --upgrade pyproject.toml --extra dev --extra nano --universal \
		--fork-strategy fewest --no-annotate --no-header -o constraints.txt

wheels:
	$(PYTHON) -m benchmarks.wheels

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
