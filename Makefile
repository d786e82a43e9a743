# One word each. `make demo` and `make test` do all the set-up themselves, on a machine with only Python and make.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
READY := $(VENV)/.ready
# Many tests wait for processes of theirs, so half as many again as there are cores.
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN || echo 2) * 3 / 2 )))
CAMPAIGNS := kill cut syscalls states servers signals stalls canary soak

# The tests of what must not fail, whose modules [tool.coverage.run] in pyproject.toml names.
CRITICAL_TESTS := $(patsubst %,tests/files/test_%.py,journal recovery repair seal takeback verify) \
	$(patsubst %,tests/rules/test_%.py,fuse headers kept_body quota redact retry) \
	tests/calls/test_received.py tests/providers/test_openai_chat.py tests/providers/test_openai_errors.py tests/test_keys.py

.PHONY: all install format lint types test coverage mutants demo bench bench-pacing bench-serving compare bench-compare campaigns clean lock help
.DEFAULT_GOAL := all

all: lint types test  ## format check, lint, types, tests

install: $(READY)

$(READY): .ci/constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "llmbatch needs Python 3.11 or newer; name it: make PYTHON=/path/to/python3"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian, apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r .ci/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## the main job on samples/, against the simulated provider: no key, no network
	@rm -f .demo/* && mkdir -p .demo
	$(BIN)/llmbatch run samples/reviews.jsonl -t @samples/sentiment.txt -m sim/demo --sim latency=lognormal:median=0.8,sigma=0.4 --sim fault=503=0.02 -c 20 -o .demo/reviews.results.jsonl
	@echo; echo "The first two of $$(wc -l < .demo/reviews.results.jsonl) lines of .demo/reviews.results.jsonl:"; head -n 2 .demo/reviews.results.jsonl

test: $(READY)  ## the whole suite, on all cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

coverage: $(READY)  ## of the code that must not fail, every branch (10 seconds)
	$(BIN)/python -m coverage run -m pytest $(CRITICAL_TESTS)
	$(BIN)/python -m coverage report

mutants: $(READY)  ## would the tests notice a fault in that code? (about 10 minutes on 2 cores)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[mutants]'
	$(BIN)/python tests/mutants.py $(CRITICAL_TESTS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)  ## the figures of benchmarks/RESULTS.md (nginx with its echo module, about 20 minutes)
	$(BIN)/python -m benchmarks

bench-pacing: $(READY)  ## the figures of benchmarks/PACING.md: how much of the limits is used (about 10 minutes)
	$(BIN)/python benchmarks/pacing.py

bench-serving: $(READY)  ## a blocking server against an event loop: benchmarks/SERVING.md, docs/serving.md (7 minutes)
	$(BIN)/python benchmarks/serving.py --write

compare: $(READY)  ## one after the other, threads, processes, one event loop: side by side, in about a minute
	$(BIN)/llmbatch compare samples/reviews.jsonl -t @samples/sentiment.txt

bench-compare: $(READY)  ## the figures and pictures of docs/comparison.md, and the README's table (about 25 minutes)
	$(BIN)/python benchmarks/compare.py

campaigns: $(READY)  ## all long searches for a broken promise, and the table tests/campaigns/RESULTS.md (about two hours)
	@for name in $(CAMPAIGNS); do $(BIN)/python tests/campaigns $$name || exit 1; done

campaign-%: $(READY)
	$(BIN)/python tests/campaigns $* $(ARGS)

lock:  ## pin the tested set anew, with hashes
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
		--no-annotate --extra dev --extra parquet --extra plot --extra zstd pyproject.toml .ci/build.in --output-file .ci/constraints.txt

clean:
	rm -rf $(VENV) .demo .mutants .coverage .pytest_cache .mypy_cache .ruff_cache

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'
