# Recipes of the project. Each makes its own set-up; `make help` lists them.
# A Python of your choice: make PYTHON=/path/to/python3.12 test
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
export PYTHON
# Options for JupyterLab: make lab LAB='--no-browser --port 9999'
LAB ?=

PREPARE := sh scripts/python.sh scripts/prepare.py
PY := .venv/bin/python
INPUTS := pyproject.toml constraints.txt scripts/prepare.py
# Frameworks that can be installed together, by environment.
GRAPHS := tests/frameworks/test_langgraph.py tests/frameworks/test_ag2.py tests/frameworks/test_langchain_anthropic.py \
	tests/frameworks/test_instrumented.py
CREWS := tests/frameworks/test_crewai.py tests/frameworks/test_autogen.py tests/frameworks/test_dspy_and_litellm.py
AGENTS := tests/frameworks/test_pydantic_ai.py tests/frameworks/test_openai_agents.py tests/frameworks/test_smolagents.py
INDEXES := tests/frameworks/test_llama_index.py
# Tests to which the version of the OpenAI SDK may matter: they run with the older one too.
WITH_SDK := abandoned at_once bad_answers bounds budget faults partial tracking waiting
# What the capture matrix needs.
ENVIRONMENTS := .venv/.test .venv-openai2/.ready
ENVIRONMENTS += $(patsubst constraints-frameworks-%.txt,.venv-frameworks-%/.ready,$(wildcard constraints-frameworks-*.txt))
PYTEST := $(PY) -m pytest --no-header -rfEsx

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/.demo ## run the quickstart for real, on your own key or a small local model, and prove its numbers
	@$(PY) scripts/run_demo.py

lab: .venv/.lab ## open the quickstart in JupyterLab
	@$(PY) -m jupyterlab $$([ "$$(id -u)" -ne 0 ] || echo --allow-root) $(LAB) notebooks/quickstart.ipynb

test: lint notebooks openai2 graphs tests ## everything: lint, types, import contracts, notebooks, both OpenAI SDKs, frameworks, all tests

lint: .venv/.test ## ruff, mypy, import contracts
	@echo "== lint"
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet . || { echo "some files are not formatted; this repairs it: make fmt"; exit 1; }
	@$(PY) -m mypy
	@said=$$(.venv/bin/lint-imports --no-cache 2>&1) || { echo "$$said"; exit 1; }; echo "$$said" | tail -1

fmt: .venv/.test ## format, and repair what ruff can repair
	@$(PY) -m ruff check --fix --quiet . ; $(PY) -m ruff format .

notebooks: .venv/.test
	@echo "== notebooks"
	@scripts/isolated.sh env WFLO_NB=static $(PYTEST) -q --nbval-lax --nbval-current-env --nbval-cell-timeout=120 notebooks

openai2: .venv-openai2/.ready .tools/postgres.path
	@echo "== OpenAI SDK 2.x"
	@scripts/isolated.sh .venv-openai2/bin/python -m pytest --no-header -rfEsx -q $(WITH_SDK:%=tests/integration/test_%.py)

graphs: .venv-frameworks-graphs/.ready .tools/postgres.path
	@echo "== LangGraph, ag2, langchain-anthropic, instrumentations"
	@scripts/isolated.sh .venv-frameworks-graphs/bin/python -m pytest --no-header -rfEsx -q $(GRAPHS)

crews: .venv-frameworks-crews/.ready .tools/postgres.path
	@echo "== CrewAI, AutoGen, DSPy, LiteLLM"
	@scripts/isolated.sh .venv-frameworks-crews/bin/python -m pytest --no-header -rfEsx -q $(CREWS)

agents: .venv-frameworks-agents/.ready .tools/postgres.path
	@echo "== pydantic-ai, openai-agents, smolagents"
	@scripts/isolated.sh .venv-frameworks-agents/bin/python -m pytest --no-header -rfEsx -q $(AGENTS)

indexes: .venv-frameworks-indexes/.ready .tools/postgres.path
	@echo "== LlamaIndex"
	@scripts/isolated.sh .venv-frameworks-indexes/bin/python -m pytest --no-header -rfEsx -q $(INDEXES)

claude: .venv-frameworks-claude/.ready .tools/postgres.path
	@echo "== claude-agent-sdk"
	@scripts/isolated.sh .venv-frameworks-claude/bin/python -m pytest --no-header -rfEsx -q tests/frameworks/test_claude_agent.py

test-matrix: graphs crews agents indexes claude ## every framework in an environment of its own (CI runs graphs)

tests: .venv/.test .tools/postgres.path .tools/pgbouncer.path .tools/chromium.path
	@echo "== tests"
	@scripts/isolated.sh $(PYTEST)

bench: .venv/.test .tools/postgres.path ## the figures of the documents, measured on this machine
	@scripts/isolated.sh sh -c 'failed=; for file in benchmarks/[a-z]*.py; do echo "== $$file"; \
		case $$file in */budget.py) set -- --quick --only wflo;; */many.py) set -- --calls 20000 --sdk 2000;; \
			*/overhead_peers.py) set -- --only wflo;; */matrix.py) set -- --quick;; *) set --;; esac; \
		$(PY) "$$file" "$$@" || failed="$$failed $$file"; done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }'

bench-budget: .venv/.test .tools/postgres.path ## budgets of other makers beside ours; installs them below .cache, takes twenty minutes
	@scripts/isolated.sh $(PY) benchmarks/budget.py

bench-overhead: .venv/.test ## what tools of other makers add to a call, beside ours; installs them too, takes a quarter of an hour
	@scripts/isolated.sh $(PY) benchmarks/overhead_peers.py

.PHONY: bench-matrix
bench-matrix: $(ENVIRONMENTS) ## every SDK and framework beside a provider that counts for itself, and the small model; a quarter of an hour
	@scripts/isolated.sh $(PY) benchmarks/matrix.py

lock: ## write the constraint files anew (needs uv)
	@sh scripts/lock.sh

clean: ## remove everything the recipes made here
	rm -rf .venv .venv-openai2 .venv-frameworks-* .tools .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist

.venv/.demo: $(INPUTS)
	@$(PREPARE) demo && touch $@

.venv/.lab: $(INPUTS) .venv/.demo
	@$(PREPARE) lab && touch $@

.venv/.test: $(INPUTS)
	@$(PREPARE) test && touch $@ .venv/.demo

.venv-openai2/.ready: pyproject.toml constraints-openai2.txt scripts/prepare.py scripts/openai2.in
	@$(PREPARE) openai2 && touch $@

.venv-frameworks-%/.ready: pyproject.toml constraints-frameworks-%.txt scripts/frameworks-%.in scripts/prepare.py
	@$(PREPARE) frameworks-$* && touch $@

# What stands on the machine may go away, so these look each time; they are quick when nothing is missing.
.tools/postgres.path: .venv/.test FORCE
	@$(PREPARE) postgres

.tools/pgbouncer.path: .venv/.test FORCE
	@$(PREPARE) pgbouncer

.tools/chromium.path: .venv/.test FORCE
	@$(PREPARE) chromium

.PHONY: help demo lab test lint fmt notebooks openai2 graphs crews agents indexes claude test-matrix tests bench bench-budget bench-overhead \
	bench-matrix lock clean FORCE
.NOTPARALLEL:
