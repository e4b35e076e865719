# What a newcomer types. `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo up kafka test lint types unit slow e2e test-faults protos wire tiny-omni bench-learning bench-serving bench-swap bench-log bench-scaling bench-trainer bench-hostile bench-rollout images locks sbom dashboards manifests experiment-paper clean

VENV := .venv
BIN := $(VENV)/bin
# One stamp per state of pyproject.toml: the second run finds it and does nothing.
STAMP := $(VENV)/.ready-$(shell sha256sum pyproject.toml | cut -c1-16)
# Java and Maven, which run and bring the Kafka broker. Its jars go to a cache outside the checkout.
BROKER := $(VENV)/.broker-$(shell sha256sum anyloop/cli/kafka/pom.xml | cut -c1-16)
# A real kube-apiserver and etcd, built once by Go into a cache outside the checkout; and promtool for the alert rules.
CLUSTER := $(VENV)/.cluster-$(shell cat tests/k8s/controlplane/go.sum tests/k8s/controlplane/*/main.go | sha256sum | cut -c1-16)
PROMTOOL := $(BIN)/promtool
# Several processes share the cores; torch's own thread pools would fight over them.
export OMP_NUM_THREADS ?= 1

help:  ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Virtual environment in .venv with everything installed

# The newest Python that the Triton wheel supports, with a shared libpython if there is one (Triton's Python backend needs it).
$(STAMP): pyproject.toml
	@python=
	for candidate in python3.13 python3.12 python3.11 python3; do
	  "$$candidate" -c 'import sys, venv, ensurepip; assert (3, 11) <= sys.version_info < (3, 14)' 2>/dev/null || continue
	  python="$${python:-$$candidate}"
	  if "$$candidate" -c 'import sysconfig as s; assert s.get_config_var("Py_ENABLE_SHARED")' 2>/dev/null; then
	    python="$$candidate"; break
	  fi
	done
	if [ -z "$$python" ]; then echo "AnyLoop needs Python 3.11, 3.12 or 3.13 with venv: install one and run make again" >&2; exit 1; fi
	echo "Setting up $(VENV) with $$("$$python" --version) (minutes on the first run)"
	test -x $(BIN)/python || "$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on torch==2.13.0
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e '.[triton,trainer,data,k8s,s3,dev]'
	rm -f $(VENV)/.ready-*
	touch $@
.ONESHELL:

# Without them, and where they cannot be installed, tests that need a broker are skipped with a word (in CI they fail).
$(BROKER): $(STAMP)
	@if ! { command -v java && command -v mvn; } >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	  echo "Installing Java 17 and Maven for the Kafka broker"
	  apt-get update -qq
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless maven >/dev/null
	fi
	if { command -v java && command -v mvn; } >/dev/null; then
	  $(BIN)/python -c 'from anyloop.cli.kafka.artifacts import jars; jars()'
	  rm -f $(VENV)/.broker-*
	  touch $@
	else
	  echo "No Java 17 and Maven here: a Kafka broker of this machine's own cannot run (apt-get install openjdk-17-jre-headless maven)" >&2
	fi

# Without it, and where it cannot be built, tests on a real API server are skipped with a word (in CI they fail).
$(CLUSTER): $(STAMP)
	@if command -v go >/dev/null; then
	  nice $(BIN)/python -m tests.k8s.controlplane
	  rm -f $(VENV)/.cluster-*
	  touch $@
	else
	  echo "No Go 1.26 here: kube-apiserver and etcd for the controller's tests cannot be built" >&2
	fi

# The same for promtool, which checks the alert rules. Unpacked, not installed: Debian's package would start a server.
$(PROMTOOL): $(STAMP)
	@if command -v promtool >/dev/null; then ln -sf "$$(command -v promtool)" $@; exit; fi
	if command -v apt-get >/dev/null; then
	  echo "Fetching promtool (package prometheus)"
	  folder=$$(mktemp -d)
	  trap 'rm -rf "$$folder"' EXIT
	  chmod 755 "$$folder"
	  (cd "$$folder"; apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }) 2>/dev/null || true
	  for package in "$$folder"/*.deb; do dpkg -x "$$package" "$$folder" && install -m 755 "$$folder/usr/bin/promtool" $@; done || true
	fi
	test -x $@ || echo "No promtool here: the alert rules cannot be tested (Debian's package prometheus has it)" >&2

demo: $(STAMP) $(if $(filter kafka,$(LOG)),$(BROKER))  ## The whole loop: serve, listen, learn, swap; ends with demo-out/demo-report.html (LOG=kafka too)
	$(BIN)/anyloop demo $(if $(LOG),--log $(LOG))

up: $(STAMP) $(if $(filter kafka,$(LOG)),$(BROKER))  ## Everything on this machine until Ctrl-C (LOG=kafka: on a real broker)
	$(BIN)/anyloop up $(if $(LOG),--log $(LOG))

kafka: $(STAMP) $(BROKER)  ## A real Kafka broker on this machine until Ctrl-C (Java 17; the jars come by Maven)
	$(BIN)/anyloop kafka

test: lint types unit slow e2e  ## All checks: ruff, mypy, unit tests, slow tests, end-to-end tests

lint: $(STAMP)  ## ruff check and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

unit: $(STAMP) $(BROKER) $(CLUSTER) $(PROMTOOL)  ## Tests that start no service (generated code and wire compatibility among them)
	$(BIN)/python -m pytest -n 2 -m "not e2e and not slow" -q

slow: $(STAMP) $(BROKER) $(CLUSTER)  ## Tests of a minute at most that may run beside each other (kills at every fault point, trainings)
	$(BIN)/python -m pytest -n 2 -m "slow and not e2e" -q

e2e: $(STAMP) $(BROKER) $(CLUSTER)  ## Tests that start real processes, one after another
	$(BIN)/python -m pytest -m e2e -q

test-faults: $(STAMP) $(BROKER)  ## Kills, full disks and cut networks under load, on a real broker: bench-out/faults.json (ONLY=broker for one)
	$(BIN)/python -m tests.faults $(if $(ONLY),--only $(ONLY))

protos: $(STAMP)  ## Generate the protobuf code again
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --pyi_out=. protos/anyloop/v1/*.proto

wire: $(STAMP)  ## Add new protobuf fields to the wire guard
	$(BIN)/python -m tests.protos.wire

tiny-omni: $(STAMP)  ## Train the reference model and its codecs anew (under two hours on two cores)
	OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m anyloop.world.pretrain

bench-learning: $(STAMP)  ## What the trainer's settings do to the reference model, without the services
	OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m bench.learning_rounds

bench-serving: $(STAMP)  ## AnyLoop beside `transformers serve` and its floors: one table, bench-out/serving.{json,png}
	$(BIN)/python -m bench.serving

bench-swap: $(STAMP)  ## Fifty swaps under 32 streams: dropped, garbled, how long steps pause: bench-out/swap.json
	$(BIN)/python -m bench.swap

bench-log: $(STAMP) $(BROKER)  ## Events/s into SQLite, Kafka and bare kafka-python; what recording adds to an answer: bench-out/log.json
	$(BIN)/python -m bench.log

bench-scaling: $(STAMP) $(BROKER)  ## CPU of one answer, one feedback, one event at each station, for docs/scaling.md: bench-out/scaling.json
	$(BIN)/python -m bench.scaling

bench-trainer: $(STAMP)  ## DPO, GRPO and PPO steps beside TRL's, and a round by phase: bench-out/trainer.json
	$(BIN)/python -m bench.trainer

bench-hostile: $(STAMP)  ## What 10 and 30 % of hostile critiques do, with and without the robust mode: bench-out/hostile.json
	$(BIN)/python -m bench.hostile

bench-rollout: $(STAMP) $(CLUSTER)  ## A rollout over three replicas under load, and over up to 1,000 simulated ones: bench-out/rollout.json
	$(BIN)/python -m bench.rollout

images: $(STAMP)  ## Container images of the whole loop (needs docker compose)
	docker compose -f docker/compose.yaml --profile loop build

locks: $(STAMP)  ## The images' packages with their hashes, after a change of pyproject.toml: docker/locks
	$(BIN)/python docker/lock.py

sbom: $(STAMP)  ## What is in each image, as CycloneDX: sbom-out/
	$(BIN)/python docker/sbom.py sbom-out

dashboards: $(STAMP)  ## The Grafana dashboards of the chart from anyloop/telemetry/dashboards
	$(BIN)/python -m anyloop.telemetry.dashboards

manifests: $(STAMP)  ## k8s/base (kustomize) from the chart with its default values
	$(BIN)/python -m k8s.manifests

experiment-paper: $(STAMP)  ## The paper's table and ablation in the reference world (QUICK=1: three seeds, under 40 minutes; JOBS=2)
	$(BIN)/python -m bench.paper $(if $(QUICK),--quick) $(if $(JOBS),--jobs $(JOBS)) $(if $(ONLY),--only '$(ONLY)')
	$(if $(QUICK),,$(BIN)/python -m bench.paper report)

clean:  ## Remove what the demo, the tests and the tools wrote; .venv stays
	rm -rf .anyloop demo-out demo-report.json demo-report.html bench-out sbom-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
