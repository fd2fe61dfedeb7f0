#!/usr/bin/env bash
# Judges the runs of run_hybrid_qm.sh against the trajectories of run_qm_trajectories.sh:
# OUT_DIR/eval/<molecule>/{report.html,metrics.json}, and OUT_DIR/eval/table.txt over all molecules.
#
#   bash eval_qm.sh
#
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/batch.sh"

begin "$@"
read_inputs

judge=(report --runs-root "$OUT_DIR/hybrid" --md-root "$OUT_DIR/md")
results() { echo "$OUT_DIR/eval/$1/metrics.json"; }
commands() {
    run "$python" src/05b_eval_qm.py --baseline "$OUT_DIR/md/$1" --hybrid "$OUT_DIR/hybrid/$1" \
        --out-dir "$OUT_DIR/eval/$1"
}
afterwards() { "$python" -m kstep batch table --report-root "$OUT_DIR/eval"; }
every "${molecules[@]}"
