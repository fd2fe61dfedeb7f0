#!/usr/bin/env bash
# Sets up .venv if it is missing, then runs ruff, mypy and, beside it, the tests, two files of tests at a time (-n 0: one
# after the other), the longest first as tests/conftest.py has them.  Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash scripts/setup_env.sh
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# once, for the hundreds of processes that tests start: where PYTHONDONTWRITEBYTECODE is set, none keeps what it compiled
.venv/bin/python -m compileall -q src
.venv/bin/python -m ruff check
.venv/bin/python -m mypy & types=$!
tests=0
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" || tests=$?
wait "$types" || { echo "error: mypy found errors, which it lists above" >&2; exit 1; }
exit "$tests"
