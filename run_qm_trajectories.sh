#!/usr/bin/env bash
# Plain QM MD of every molecule of a SMILES file: OUT_DIR/md/<molecule>/trajectory.npz.
#
#   MAX_JOBS=8 bash run_qm_trajectories.sh
#
#   QM_CONFIG        YAML of method, timestep and lengths (default: configs/qm.yaml; DFT: configs/qm_pyscf.yaml)
#
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/batch.sh"

begin "$@"
file QM_CONFIG configs/qm.yaml
read_inputs

judge=(trajectory --qm-config "$QM_CONFIG")
results() { echo "$OUT_DIR/md/$1/trajectory.npz"; }
commands() {
    run "$python" "$baseline_script" --smiles-file "$SMILES_FILE" --molecule "$1" --config "$QM_CONFIG" \
        --raw "$OUT_DIR/raw" --out "$OUT_DIR/md" --num-workers "$THREADS_PER_JOB" --resume
}
every "${molecules[@]}"
