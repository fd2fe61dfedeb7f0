#!/usr/bin/env bash
# Windows of k timesteps from the trajectories of run_qm_trajectories.sh: OUT_DIR/datasets/all/dataset_k<k>.npz
# and its splits.  It is made again when a trajectory is new.
#
#   K_STEPS="4 8" bash make_qm_dataset.sh
#
# --help lists its variables, which are flags too; it is `kstep batch dataset`.
source "$(dirname "${BASH_SOURCE[0]}")/scripts/batch.sh" dataset "$@"
