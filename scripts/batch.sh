# What the batch scripts of the repository root share; they source it.  A script names its settings
# (count, file, choice ...), says by `results` which files a task ends in and by `commands` how they are
# made, and calls `every TASK...`.  A task is a molecule, or `all`.
#
# Variables of every batch script, paths relative to the repository root:
#   OUT_DIR          folder of everything the batch makes (default: outputs/qm)
#   SMILES_FILE      lines of 'SMILES name' (default: data/qm_molecules.smi)
#   MOLECULES        names of that file to take, separated by blanks (default: all)
#   MAX_JOBS         tasks at a time (default: 1)
#   THREADS_PER_JOB  cores of one job: the true calls of its replicas side by side, each with one thread, and
#                    torch's threads in training (default: 1)
#   DRY_RUN          1: print what would be run, run nothing (default: 0)
#   KSTEP_PYTHON     interpreter to use instead of .venv/bin/python
#
# A task whose result is whole is skipped, so the same command continues an interrupted batch.  Ctrl-C
# stops every job; a failed task stops no other.  Exit code: 0 all finished, 1 some failed,
# 2 a setting is wrong and nothing was run, 130 interrupted.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

fail() { echo "error: $*" >&2; exit 2; }

# begin ARGUMENTS...: --help, the settings of every script, and the interpreter
begin() {
    script=$(basename "$0")
    case ${1:-} in
        -h|--help)
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"
            sed -n '/^# Variables/,/^$/s/^# \{0,1\}//p' scripts/batch.sh
            exit 0 ;;
        ?*) fail "unknown argument '$1'; $script is steered by environment variables, --help lists them" ;;
    esac
    ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "$script needs bash 4.4, this is $BASH_VERSION"
    OUT_DIR=${OUT_DIR:-outputs/qm}
    case $OUT_DIR in -*) OUT_DIR=./$OUT_DIR ;; esac # no flag
    [[ " ${MOLECULES:-}" != *[[:space:]]-* ]] || fail "MOLECULES is '$MOLECULES'; no name begins with a dash"
    file SMILES_FILE data/qm_molecules.smi
    count MAX_JOBS 1
    count THREADS_PER_JOB 1
    choice DRY_RUN 0 1
    python=${KSTEP_PYTHON:-.venv/bin/python}
    if [ "$DRY_RUN" = 0 ] && [ -z "${KSTEP_PYTHON:-}" ]; then bash scripts/setup_env.sh || exit 2; fi
    command -v "$python" > /dev/null || fail "$python is not there; run bash scripts/setup_env.sh, or set KSTEP_PYTHON"
    # two threads in one true call are slower than one
    export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
    # `python -m kstep` is that of this folder, as the numbered scripts' is
    export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
}

# Settings: each takes the variable NAME from the environment, or its default, and refuses nonsense.
count() { # NAME DEFAULT
    printf -v "$1" %s "${!1:-$2}"
    [[ ${!1} =~ ^[1-9][0-9]{0,8}$ ]] || fail "$1 is '${!1}'; it must be a whole number of 1 or more"
}
counts() { # NAME DEFAULT
    printf -v "$1" %s "${!1:-$2}"
    [[ ${!1} =~ ^\ *[1-9][0-9]{0,8}(\ +[1-9][0-9]{0,8})*\ *$ ]] ||
        fail "$1 is '${!1}'; it must be whole numbers of 1 or more, separated by blanks"
}
choice() { # NAME DEFAULT OTHER...
    printf -v "$1" %s "${!1:-$2}"
    local word
    for word in "${@:2}"; do [ "$word" = "${!1}" ] && return; done
    fail "$1 is '${!1}'; it must be one of ${*:2}"
}
file() { # NAME DEFAULT
    printf -v "$1" %s "${!1:-$2}"
    [ -f "${!1}" ] || fail "$1 is '${!1}', which is not a file"
}
# made_before FILE SCRIPT: what an earlier script of the chain writes; a dry run takes it for granted
made_before() { [ "$DRY_RUN" = 1 ] || [ -f "$1" ] || fail "$1 does not exist; run $2 first"; }

# read_inputs: molecules (array), and baseline_script and dt_fs of QM_CONFIG if the script has one
read_inputs() {
    local answers kind first rest
    molecules=()
    # shellcheck disable=SC2086
    answers=$("$python" -m kstep batch inputs --smiles-file "$SMILES_FILE" ${MOLECULES:+--molecules $MOLECULES} \
        ${QM_CONFIG:+--qm-config "$QM_CONFIG"}) || exit 2
    while IFS=$'\t' read -r kind first rest; do
        case $kind in
            molecule) molecules+=("$first") ;;
            problem) row "$first" failed "" "" "$rest" ;;
            baseline) baseline_script=$first dt_fs=$rest ;;
        esac
    done <<< "$answers"
    [ -z "${baseline_script:-}" ] || [ -f "$baseline_script" ] || fail "$QM_CONFIG needs $baseline_script"
}

# row TASK STATUS SECONDS CPU_SECONDS TEXT: a line of the table at the end
rows=() failures=0
row() {
    rows+=("$1"$'\t'"$2"$'\t'"$3"$'\t'"$4"$'\t'"$5")
    case $2 in failed|stopped) failures=$((failures + 1)) ;; esac
}

# judged TASK...: lines of 'TASK done|missing|broken|other TEXT', from the files that `results` names
judged() {
    local arguments=() name files
    [ $# -gt 0 ] || return 0
    for name in "$@"; do
        mapfile -t files < <(results "$name")
        arguments+=(--of "$name" "${files[@]}")
    done
    "$python" -m kstep batch "${judge[@]}" "${arguments[@]}"
}

# keep_finished: drop from `molecules` those whose results are not whole; they have failed before
keep_finished() {
    [ "$DRY_RUN" = 0 ] || return 0
    local answers name kind text kept=()
    answers=$(judged "${molecules[@]}") || exit 2
    while IFS=$'\t' read -r name kind text; do
        case $kind in
            "") ;;
            done) kept+=("$name") ;;
            *) row "$name" failed "" "" "${text:-$(results "$name") is not there}" ;;
        esac
    done <<< "$answers"
    molecules=("${kept[@]}")
}

# run COMMAND...: runs it, or prints it in a dry run
run() {
    printf '$'; printf ' %q' "$@"; echo
    [ "$DRY_RUN" = 1 ] || "$@"
}

# job TASK: makes its results, measures and judges them; leaves 'STATUS SECONDS CPU_SECONDS TEXT'
job() {
    local name=$1 log=$logs/$1.log code seconds user system status text
    local TIMEFORMAT='%R %U %S'
    { time { (set -e; commands "$name") > "$log" 2>&1 < /dev/null; }; } 2> "$state/$name.time"
    code=$?
    read -r seconds user system < "$state/$name.time"
    IFS=$'\t' read -r _ status text < <(judged "$name" 2>&1)
    if [ $code -ne 0 ]; then
        text=$(tr '\r' '\n' < "$log" | grep -E '^(error: |E )' | tail -n 1 | sed -E 's/^(error: |E )//')
        text="${text:-exit code $code} ($log)" status=failed
    elif [ "$status" != done ]; then
        text="${text:-$(results "$name" | head -n 1) was not made} ($log)" status=failed
    fi
    seconds=$(printf '%.0f' "$seconds") user=$(awk "BEGIN {printf \"%.0f\", $user + $system}")
    printf '%s\t%s\t%s\t%s\n' "$status" "$seconds" "$user" "$text" > "$state/$name.row"
    echo "$name: $status in $seconds s ($user s CPU): $text"
}

# stop_jobs: Ctrl-C; each job is a process group of its own, a second Ctrl-C kills it
stop_jobs() {
    trap 'signal_jobs KILL; exit 130' INT TERM HUP
    interrupted=1
    signal_jobs INT
}
signal_jobs() {
    local pid
    for pid in "${pids[@]}"; do kill -"$1" -- -"$pid" 2> /dev/null; done
}

# every TASK...: makes what is not there yet, MAX_JOBS at a time, prints the table and exits
every() {
    local answers name kind text todo=()
    judge+=(--set-aside)
    [ "$DRY_RUN" = 0 ] || unset 'judge[-1]'
    answers=$(judged "$@") || exit 2
    while IFS=$'\t' read -r name kind text; do
        case $kind in
            "") ;;
            done) row "$name" skipped "" "" "$text" ;;
            other) row "$name" failed "" "" "$text" ;;
            *) todo+=("$name") ;;
        esac
    done <<< "$answers"
    if [ "$DRY_RUN" = 1 ]; then
        for name in "${todo[@]}"; do commands "$name"; row "$name" planned "" "" ""; done
    else
        run_jobs "${todo[@]}"
    fi
    finish
}

run_jobs() {
    local name running=0
    logs=$OUT_DIR/logs/${script%.sh} state=$(mktemp -d) interrupted=0 pids=()
    trap 'rm -rf "$state"' EXIT
    mkdir -p "$logs" || fail "$logs cannot be written"
    trap stop_jobs INT TERM HUP
    set -m # a job must not share the terminal's Ctrl-C: it would be ignored, as in any job started with &
    for name in "$@"; do
        while [ $running -ge "$MAX_JOBS" ] && [ $interrupted = 0 ]; do wait -n; running=$((running - 1)); done
        [ $interrupted = 0 ] || break
        job "$name" & pids+=($!) running=$((running + 1))
    done
    while [ -n "$(jobs -pr)" ]; do wait -n; done
    set +m
    for name in "$@"; do
        if [ -s "$state/$name.row" ] && [ $interrupted = 0 ] || grep -q '^done' "$state/$name.row" 2> /dev/null; then
            IFS=$'\t' read -r kind seconds cpu text < "$state/$name.row"
            row "$name" "$kind" "$seconds" "$cpu" "$text"
        else
            row "$name" stopped "" "" "interrupted; the same command continues it"
        fi
    done
}

# finish: the table, also in OUT_DIR/logs, and the exit code
finish() {
    local width=8 line name status seconds cpu text table
    for line in "${rows[@]}"; do name=${line%%$'\t'*}; [ ${#name} -le $width ] || width=${#name}; done
    table=$(
        printf "%-${width}s  %-8s  %7s  %7s  %s\n" molecule status seconds 'CPU s' result
        for line in "${rows[@]}"; do
            # a tab is white space to read, which would swallow empty cells
            IFS=$'\x1f' read -r name status seconds cpu text <<< "${line//$'\t'/$'\x1f'}"
            printf "%-${width}s  %-8s  %7s  %7s  %s\n" "$name" "$status" "$seconds" "$cpu" "$text"
        done)
    printf '\n%s\n' "$table"
    if [ "$DRY_RUN" = 0 ]; then printf '%s\n' "$table" > "$OUT_DIR/logs/${script%.sh}.txt"; fi
    if [ "$DRY_RUN" = 0 ] && declare -F afterwards > /dev/null; then afterwards || failures=$((failures + 1)); fi
    [ "$failures" = 0 ] || echo "$failures of ${#rows[@]} did not finish" >&2
    [ "${interrupted:-0}" = 0 ] || exit 130
    exit $((failures > 0))
}
