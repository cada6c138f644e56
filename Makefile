# make setup · demo · learn · test · check · cluster-test · images · bench      (make help explains)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DOCKER ?= docker
KIND ?= kind
KIND_NODE_IMAGE ?= kindest/node:v1.32.2
# The images are called $(PREFIX)operator:$(TAG) and so on.
PREFIX ?= visionrl/
TAG ?= 0.1.0
COMMIT := $(shell git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null)
DOCKER_BUILD = $(DOCKER) build --build-arg VISIONRL_COMMIT=$(COMMIT)
PARTS := operator taskapp inference trainer
LOCKS := -r requirements/cpu.lock -r requirements/dev.lock
TORCH := $(shell grep ^torch requirements/cpu.lock)
TORCH_VERSION := $(patsubst torch==%,%,$(filter torch==%,$(TORCH)))

.DEFAULT_GOAL := help
.PHONY: help setup demo learn test check cluster-test crd-check cluster cluster-down e2e-kind images cpu-base images-cpu crds bench docs docs-reference faults soak clean

help: ## Show the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

setup: $(VENV)/.complete ## Make the locked CPU environment in .venv

# torch is always pip's: which build there is depends on pip's configuration, and uv does not read that.
$(VENV)/.complete: requirements/cpu.lock requirements/dev.lock pyproject.toml
	@$(PYTHON) requirements/prerequisites.py
	$(PYTHON) -m venv $(VENV)
	@if $(BIN)/pip index versions torch 2>/dev/null | grep -qF '$(TORCH_VERSION)+cpu'; then \
	  echo "installing the locked environment: 0.7 GB to download, 3 GB on disk"; else \
	  echo "installing the locked environment: 3.2 GB to download, 7 GB on disk, for pip finds no CPU build of torch;" \
	    "the one for CUDA works without a GPU, too"; fi
	@$(BIN)/pip install -qq --no-warn-conflicts --constraint requirements/cpu.lock $(TORCH)
	@{ command -v uv >/dev/null && uv pip install --quiet --python $(BIN)/python --no-deps $(LOCKS); } || \
	  $(BIN)/pip install -qq --no-deps $(LOCKS)
	@$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	@$(BIN)/python -m visionrl.cpu_env
	@touch $@

demo: setup ## Train the tiny model on this machine: configs/crafter-tiny.yaml
	$(BIN)/visionrl run configs/crafter-tiny.yaml
	@echo "What this shows: game, server and trainer work together, from random weights to a served policy."
	@echo "What it does not: how well it learns. That takes more iterations and seeds: make learn, docs/learning.md"

learn: setup ## The learning evidence: controls, training, ablations (docs/learning.md); again to continue
	$(BIN)/python -m recipes.learn

# A file's tests share servers; in the files' order, the long ones come first. A test often waits: one worker more than
# there are cores, four at most.
test: setup ## All tests that need no cluster and no GPU
	$(BIN)/python -m pytest -m "not cluster and not gpu" \
	  --numprocesses $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

cluster-test: setup ## Tests on a real Kubernetes that is built and run here: root on Debian 12, 15 minutes at first
	@test "$$(id -u)" = 0 || test -n "$$VISIONRL_E2E_KUBECONFIG" || { \
	  echo "needs root (sudo make cluster-test), or VISIONRL_E2E_KUBECONFIG of a cluster with the images" >&2; exit 1; }
	$(BIN)/python -m pytest -m cluster

crd-check: setup ## The definition's CEL rules on a current Kubernetes' API server, built from Debian sid (root on Debian 12)
	$(BIN)/python -m pytest tests/cluster/crd_check.py

cluster: setup ## A real Kubernetes on this machine, with the CPU images in it, to try things on: root on Debian 12
	$(BIN)/python -m tests.cluster.playground up

cluster-down: setup ## Stop it; nothing stays but the cache
	$(BIN)/python -m tests.cluster.playground down

e2e-kind: setup ## The cluster tests on kind, with Docker (KIND_NODE_IMAGE=)
	$(MAKE) images-cpu PREFIX=localhost/visionrl- TAG=test
	mkdir -p .kube-test
	$(KIND) create cluster --name visionrl-e2e --image $(KIND_NODE_IMAGE) --kubeconfig .kube-test/kind --wait 120s
	$(KIND) load docker-image --name visionrl-e2e $(PARTS:%=localhost/visionrl-%:test) && \
	  kubectl --kubeconfig .kube-test/kind label node visionrl-e2e-control-plane nvidia.com/gpu.product=NVIDIA-H200 && \
	  kubectl --kubeconfig .kube-test/kind patch node visionrl-e2e-control-plane --subresource=status --type=merge \
	    -p '{"status": {"capacity": {"nvidia.com/gpu": "2"}, "allocatable": {"nvidia.com/gpu": "2"}}}' && \
	  VISIONRL_E2E_KUBECONFIG=$(CURDIR)/.kube-test/kind $(BIN)/python -m pytest -m cluster; \
	  status=$$?; $(KIND) delete cluster --name visionrl-e2e; exit $$status

images: ## Build the four images with Docker, for NVIDIA GPUs (PREFIX=, TAG=)
	for part in $(PARTS); do $(DOCKER_BUILD) -f images/$$part/Dockerfile -t $(PREFIX)$$part:$(TAG) . || exit 1; done

images-cpu: cpu-base ## The same for CPUs
	for part in operator taskapp; do $(DOCKER_BUILD) -f images/$$part/Dockerfile -t $(PREFIX)$$part:$(TAG) . || exit 1; done
	for part in inference trainer; do \
	  $(DOCKER_BUILD) -f images/$$part/Dockerfile -t $(PREFIX)$$part:$(TAG) --build-arg BASE=$(PREFIX)cpu:$(TAG) . || exit 1; done

# The environment of requirements/cpu.lock.
cpu-base:
	tar -c --transform='s,.*/,,;s,cpu.lock,requirements.txt,' \
	  requirements/cpu.lock tests/cluster/kube/cpu-environment/Dockerfile | \
	  $(DOCKER) build -t $(PREFIX)cpu:$(TAG) --build-arg BASE=python:3.11-slim-bookworm -

crds: setup ## Generate the CustomResourceDefinition and the chart's copy of it
	$(BIN)/python -m visionrl_core.crd --output crds/visionrl.dev_visionrljobs.yaml
	cp crds/visionrl.dev_visionrljobs.yaml charts/visionrl/files/

check: setup ## Formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: docs-reference ## Build the documentation site in site/ with Zensical (installed in .docs-venv, not locked)
	test -x .docs-venv/bin/zensical || { $(PYTHON) -m venv .docs-venv && .docs-venv/bin/pip install -qq 'zensical>=0.0.70,<0.1'; }
	.docs-venv/bin/zensical build --clean

docs-reference: setup ## Generate docs/job.md from the job model
	$(BIN)/python -m recipes.job_reference > docs/job.md

bench: setup .cache/trl/.complete ## Measure what this machine can, and write docs/benchmarks.md (an hour on two cores)
	$(BIN)/python -m tests.bench

# What the trainer is compared with. torch and the like are those of the locked environment.
.cache/trl/.complete: requirements/trl.lock
	$(PYTHON) -m venv --without-pip .cache/trl
	$(BIN)/pip --python .cache/trl/bin/python install -qq --no-deps -r requirements/trl.lock
	PYTHONPATH=$(CURDIR) .cache/trl/bin/python -m visionrl.cpu_env
	@touch $@

faults: setup ## Kill the trainer before every single write, once; the tests take a sample (an hour on two cores)
	for scenario in checkpoint-every-1 checkpoint-every-3 warm-start; do \
	  $(BIN)/python -m tests.faults.trainer_kills $$scenario $$(mktemp -d) 1 1 once || exit 1; done

soak: setup ## Kill and freeze every process of a small job for 20 minutes; count what that costs (MINUTES=, SEED=)
	$(BIN)/python -m tests.bench.soak --minutes $(or $(MINUTES),20) --seed $(or $(SEED),1)

clean: ## Remove the environment and what tests leave behind (runs/ stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
