#!/usr/bin/env bash
# Judges the runs of run_hybrid_qm.sh against the trajectories of run_qm_trajectories.sh:
# OUT_DIR/eval/<molecule>/{report.html,metrics.json}, and OUT_DIR/eval/table.txt over all molecules.
#
#   bash eval_qm.sh
#
# --help lists its variables, which are flags too; it is `kstep batch evaluate`.
source "$(dirname "${BASH_SOURCE[0]}")/scripts/batch.sh" evaluate "$@"
