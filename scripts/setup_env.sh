#!/usr/bin/env bash
# Sets up .venv in the repository root: Python, torch, the exact versions of requirements.lock, kstep in editable
# mode.  Does nothing when it is already there and neither pyproject.toml nor the lock has changed.
#   PYTHON=python3.12 bash scripts/setup_env.sh        another interpreter (default: the newest found)
#   PIP_OPTIONS="--index-url ..." bash scripts/...     extra options of the torch install
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/.kstep-ready
wanted=$(cat pyproject.toml requirements.lock | cksum)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: md-kstep needs Python 3.11 or newer; install it or set PYTHON=/path/to/python3.11" >&2
    exit 2
}

if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    echo "== creating .venv with $("$python" --version)"
    "$python" -m venv .venv || { rm -rf .venv; echo "error: '$python -m venv' failed; on Debian: apt install python3-venv" >&2; exit 2; }
fi
venv=.venv/bin/python

# torch by exact pin, and only when there is none: a range, or an upgrade, can move to another build
if "$venv" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    echo "== torch $("$venv" -c 'from importlib.metadata import version; print(version("torch"))') is there already"
else
    torch=$(grep '^torch==' requirements.lock)
    echo "== installing $torch"
    # shellcheck disable=SC2086
    "$venv" -m pip install --quiet --disable-pip-version-check "$torch" ${PIP_OPTIONS:-}
fi
echo "== installing the other dependencies (a minute or two)"
grep -v '^torch==' requirements.lock > .venv/requirements.txt
"$venv" -m pip install --quiet --disable-pip-version-check -r .venv/requirements.txt
"$venv" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
echo "$wanted" > "$stamp"
