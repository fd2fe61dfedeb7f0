#!/usr/bin/env bash
# Plain QM MD of every molecule of a list: OUT_DIR/md/<molecule>/trajectory.npz.
#
#   MAX_JOBS=8 bash run_qm_trajectories.sh
#
# --help lists its variables, which are flags too; it is `kstep batch baseline`.
source "$(dirname "${BASH_SOURCE[0]}")/scripts/batch.sh" baseline "$@"
