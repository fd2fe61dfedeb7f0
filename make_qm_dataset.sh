#!/usr/bin/env bash
# Windows of k timesteps from the trajectories of run_qm_trajectories.sh: OUT_DIR/datasets/all/dataset_k<k>.npz
# and its splits.  It is made again when a trajectory is new.
#
#   K_STEPS="4 8" bash make_qm_dataset.sh
#
#   K_STEPS          timesteps per window, one dataset each (default: 8)
#   SPLIT_BY         time: the network is shown the start of every molecule's trajectory, and validated on its
#                    end; molecule: it is validated on molecules it was never shown (default: time)
#   PER_MOLECULE     1: a dataset for each molecule, OUT_DIR/datasets/<molecule>/ (default: 0)
#
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/batch.sh"

begin "$@"
counts K_STEPS 8
choice SPLIT_BY time molecule
choice PER_MOLECULE 0 1
[ "$PER_MOLECULE$SPLIT_BY" != 1molecule ] || fail "SPLIT_BY=molecule needs several molecules; use PER_MOLECULE=0"
read_inputs

judge=(trajectory)
results() { echo "$OUT_DIR/md/$1/trajectory.npz"; }
keep_finished

judge=(dataset --md-root "$OUT_DIR/md" --split-by "$SPLIT_BY")
for name in "${molecules[@]}"; do judge+=(--member "$name"); done
results() { for k in $K_STEPS; do echo "$OUT_DIR/datasets/$1/dataset_k$k.npz"; done; }
commands() {
    local chosen=() name
    if [ "$1" = all ]; then for name in "${molecules[@]}"; do chosen+=(--molecule "$name"); done
    else chosen=(--molecule "$1"); fi
    # shellcheck disable=SC2086
    run "$python" src/02_make_dataset.py --md-root "$OUT_DIR/md" --out-root "$OUT_DIR/datasets/$1" \
        --splits-dir "$OUT_DIR/datasets/$1/splits" --ks $K_STEPS --split-by "$SPLIT_BY" "${chosen[@]}"
}
if [ "$PER_MOLECULE" = 1 ]; then every "${molecules[@]}"
elif [ ${#molecules[@]} -gt 0 ]; then every all
else every; fi
