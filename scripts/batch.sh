# What the batch scripts of the repository root share; they run it.  scripts/batch.sh STAGE [FLAGS...] is
# `kstep batch STAGE`, whose settings are environment variables too, with the environment set up and in the
# repository root.  KSTEP_PYTHON: interpreter to use instead of .venv/bin/python, which is set up where need be.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

python=${KSTEP_PYTHON:-.venv/bin/python}
case " $* --dry-run=${DRY_RUN:-0} " in
    *" -h "*|*" --help "*|*" --dry-run=1 "*) ;; # nothing is run
    *) [ -n "${KSTEP_PYTHON:-}" ] || bash scripts/setup_env.sh || exit 2 ;;
esac
if ! command -v "$python" > /dev/null; then
    echo "error: $python is not there; run bash scripts/setup_env.sh, or set KSTEP_PYTHON" >&2
    exit 2
fi
# `python -m kstep` is that of this folder
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m kstep batch "$@"
