# Every target sets the environment up first. VENV=/somewhere shares one environment between checkouts.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
WORKSPACE ?= .
CAMVID ?= ../shared/camvid
BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
LOCK_ID := $(shell cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)
STAMP := $(VENV)/.ready-$(LOCK_ID)
DEMO := $(VENV)/.demo-$(LOCK_ID)
SLOW := slow or gpu
LONG := chain or fault or browser or long
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
WHOLE := $(PARALLEL) -m "not ($(SLOW))"

# TORCH_INDEX=URL of an index with CPU builds: the gigabytes of CUDA libraries, which the default index's torch needs, stay out.
TORCH_INDEX ?=
CUDA := nvidia-|cuda-|triton|torch==|torchvision==

# This checkout's code wins over whatever checkout the environment was built from.
export PYTHONPATH := $(CURDIR)
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

# Ablations: SEEDS=0,1,2 ROWS=a,b EPOCHS_SCALE=1 RANKS=n choose what is made; rows that are in the table are not.
ABLATE := $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ROWS),--rows $(ROWS)) $(if $(EPOCHS_SCALE),--epochs-scale $(EPOCHS_SCALE)) \
  $(if $(RANKS),--ranks $(RANKS))

.PHONY: help setup lock demo camvid camvid-full test test-full test-slow test-gpu mutants coverage bench bench-gpu bench-gpu-session lint type audit clean docs release orchestrate orchestrate-stop \
  ablation-scales ablation-labels ablation-threshold camvid-table results

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

# $(call install,FILE): the packages of a lock file, and this checkout.
define install
	test -x $(PY) || python3 -m venv $(VENV)
	mkdir -p build && awk '/^[a-z]/ {cuda = /^($(CUDA))/} !cuda' $(1) > build/cpu.lock
	if command -v uv >/dev/null; then \
	  uv pip install --quiet --python $(PY) --no-deps --require-hashes --compile-bytecode -r $(if $(TORCH_INDEX),build/cpu.lock,$(1)); \
	else \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(if $(TORCH_INDEX),build/cpu.lock,$(1)); \
	fi
	if test -n "$(TORCH_INDEX)"; then \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --index-url $(TORCH_INDEX) \
	    $$(grep -oE '^(torch|torchvision)==[0-9.]+' requirements.lock); \
	fi
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endef

$(STAMP): requirements.lock pyproject.toml
	$(call install,requirements.lock)
	@# pip check cannot see that a newer fastapi breaks prefect's server: import it once.
	$(PY) -c "import torch, torchvision, cv2, pyarrow, dvc.api; from prefect.server.api.server import create_app"
	rm -f $(VENV)/.ready-* && touch $@

$(DEMO): requirements-demo.lock pyproject.toml
	$(call install,requirements-demo.lock)
	$(PY) -c "import torch, torchvision, cv2, pyarrow, dvc.api, matplotlib, fastapi"
	rm -f $(VENV)/.demo-* && touch $@

setup: $(STAMP)  ## build .venv from the lock (VENV= overrides; TORCH_INDEX= takes torch from an index of CPU builds)

COMPILE := uv pip compile pyproject.toml --override requirements.overrides --universal --python-version 3.11 \
  --generate-hashes --no-emit-index-url --no-header --no-annotate

lock:  ## resolve pyproject.toml anew into requirements.lock, and the demo's part of it (needs uv)
	$(COMPILE) --extra all --extra dev --upgrade -o requirements.lock
	$(COMPILE) --extra demo --constraint requirements.lock --upgrade -o requirements-demo.lock

demo: $(or $(wildcard $(STAMP)),$(DEMO))  ## synthetic streets, the whole chain, ten lines of results (8 to 13 minutes on 2 cores)
	autolabel demo-data
	dvc repro
	@autolabel stage --summary

camvid: setup  ## the same stages on real photographs (CAMVID=folder; <= 60 minutes on 2 cores)
	autolabel init workspaces/camvid --profile camvid --data $(abspath $(CAMVID))
	cd workspaces/camvid && dvc repro
	autolabel stage --summary --workspace workspaces/camvid

camvid-full: FULL := --set teacher_train.loss.main=jaccard --set teacher_train.model.train_scales=[0.5,1,2] \
  --set student_train.model.train_scales=[0.5,1,2] --set student_train.epochs=12 --set student_train.pseudo.fine_only_epochs=3
camvid-full: setup  ## the same, all trained on 2x too, and students of auto-labels and of polygons alone (<= 4 hours)
	$(PY) -m research.ablate pays --prepare --workspace workspaces/camvid-full --variant default $(FULL) \
	  --data $(abspath $(CAMVID)) --rows t0,coarse --seeds 0 --publish t0=student-auto,coarse=coarse
	cd workspaces/camvid-full && dvc repro
	autolabel stage --summary --workspace workspaces/camvid-full

test test-full test-slow: export AUTOLABEL_CLEAN_TREE := 1
test: setup  ## all in-process tests, and each promise once with real processes (10 minutes on 2 cores)
	$(PY) -m pytest $(PARALLEL) -m "not ($(SLOW)) and (once or not ($(LONG)))" --durations=25

test-full: setup  ## these and all others with real processes: chain, kills, faults, browser (CI runs this)
	$(PY) -m pytest $(WHOLE) --durations=25

test-slow: setup  ## the big counts
	$(PY) -m pytest -m "slow and not gpu" --durations=20
	$(MAKE) coverage mutants

test-gpu: setup  ## what needs CUDA (two GPUs for some): numbers, memory, waits, ranks, faults; skipped where there is none
	$(PY) -m pytest -m gpu

mutants: setup  ## does a test notice? mutation run over files, locks, checkpoints, merging
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --upgrade \
	  --target build/mutmut -r tools/mutants.lock
	PYTHONPATH=$(CURDIR):$(CURDIR)/build/mutmut $(PY) -m tools.mutants

coverage: setup  ## branch coverage of the core by the tests of `make test-full`, line by line; at least 90 %
	$(PY) -m pytest $(WHOLE) -q --cov=hmsa_core --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=90

bench: setup  ## speed side by side with plain ways (python -m research.bench.run --write keeps the figures)
	$(PY) -m research.bench.run

bench-gpu: setup  ## W48 on the GPUs of this machine beside its computed bound; writes the figures into docs/scaling.md
	$(PY) -m research.bench.run --gpu --write

bench-gpu-session: setup  ## on a GPU, < 9 minutes: its tests, profile of a training step, torch's own ways (into work/gpu-session)
	$(PY) -m research.bench.gpu_session

ablation-scales: setup  ## fill the table of fusions over scales (SEEDS= ROWS= WORKSPACE=; all tables: python -m research.ablate --help)
	$(PY) -m research.ablate scales --prepare --workspace $(WORKSPACE) $(ABLATE)

ablation-labels: setup  ## attention and auto-labels; coarse as drawn, auto, auto + coarse
	$(PY) -m research.ablate labels --prepare --workspace $(WORKSPACE) $(ABLATE)

ablation-threshold: setup  ## 0, 0.5, ... 0.98 and the measured policy (one seed)
	$(PY) -m research.ablate threshold --prepare --workspace $(WORKSPACE) $(ABLATE)

camvid-table: setup  ## CamVid: control, coarse, auto, merged; both variants of the splits, and a teacher of 1280 epochs (CAMVID=folder)
	$(PY) -m research.ablate camvid-table --prepare --workspace workspaces/camvid --variant default --data $(abspath $(CAMVID)) $(ABLATE)
	$(PY) -m research.ablate camvid-table --prepare --workspace workspaces/camvid-1280 --variant default --teacher-epochs 1280 \
	  --data $(abspath $(CAMVID)) $(ABLATE)
	$(PY) -m research.ablate camvid-table --prepare --workspace workspaces/camvid-drive_shift --variant drive_shift \
	  --data $(abspath $(CAMVID)) $(ABLATE)

results: setup  ## the tables of research/notes and docs from research/tables
	$(PY) -m research.results

lint: setup  ## ruff
	$(PY) -m ruff check .

type: setup  ## mypy --strict
	$(PY) -m mypy

audit: setup  ## known vulnerabilities of the locked packages (asks the network; status 3 = could not look them up)
	$(PY) -m tools.audit

orchestrate: setup  ## Prefect server, pool, worker and deployment auto-label/nightly on loopback (WORKSPACE=. PORT=4200)
	$(PY) -m pipeline.cli.services up --workspace $(WORKSPACE) $(if $(PORT),--port $(PORT))

orchestrate-stop: setup  ## end all of it
	$(PY) -m pipeline.cli.services down --workspace $(WORKSPACE)

docs: setup  ## the docs as a site in build/site; fails at a broken link
	$(PY) -m mkdocs build --quiet --strict

release: setup lint type  ## wheel and source archive in dist/, checked
	$(PY) -m tools.release

clean:  ## remove what runs left, keep .venv
	rm -rf work report evaluation calibration labels/raw labels/final labels/shift.json plots metrics data/index data/demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -rf models/pretrain models/teacher models/student models/control
