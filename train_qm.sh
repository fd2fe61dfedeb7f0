#!/usr/bin/env bash
# Trains one network over all molecules of make_qm_dataset.sh: OUT_DIR/networks/all/best.pt.
#
#   DEVICE=cuda bash train_qm.sh
#
#   K_STEPS          the dataset to learn from is the one of k timesteps, the largest if several (default: 8)
#   MODEL_CONFIG     YAML of the network (default: configs/model.yaml: jumps; with PER_MOLECULE=1
#                    configs/model_pair_mlp.yaml: energies, for metropolis, impulse and checked)
#   TRAIN_CONFIG     YAML of the training (default: configs/train.yaml, with CHECKPOINT configs/train_qm.yaml; with
#                    PER_MOLECULE=1 configs/train_pair_mlp.yaml)
#   DEVICE           auto | cpu | cuda (default: auto)
#   CHECKPOINT       network whose weights to start from, e.g. one of xTB for a DFT one (default: none)
#   PER_MOLECULE     1: a network for each molecule, OUT_DIR/networks/<molecule>/ (default: 0)
#
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/batch.sh"

begin "$@"
counts K_STEPS 8
choice PER_MOLECULE 0 1
if [ "$PER_MOLECULE" = 1 ]; then kind=_pair_mlp; else kind=; fi
file MODEL_CONFIG configs/model$kind.yaml
training=$kind
if [ -n "${CHECKPOINT:-}" ] && [ "$PER_MOLECULE" = 0 ]; then training=_qm; fi
file TRAIN_CONFIG configs/train$training.yaml
choice DEVICE auto cpu cuda
[ -z "${CHECKPOINT:-}" ] || file CHECKPOINT ""
k=$(printf '%s\n' $K_STEPS | sort -n | tail -n 1)
read_inputs
[ "$PER_MOLECULE" = 1 ] || made_before "$OUT_DIR/datasets/all/dataset_k$k.npz" make_qm_dataset.sh

judge=(network --dataset "$OUT_DIR/datasets/{molecule}/dataset_k$k.npz" --model-config "$MODEL_CONFIG")
results() { echo "$OUT_DIR/networks/$1/best.pt"; }
commands() {
    local data=$OUT_DIR/datasets/$1 out=$OUT_DIR/networks/$1 start=()
    if [ -e "$out/last.pt" ] && [ ! -e "$out/training.json" ]; then start=(--resume)
    elif [ -n "${CHECKPOINT:-}" ]; then start=(--pretrained "$CHECKPOINT"); fi
    run "$python" src/04_train.py --dataset "$data/dataset_k$k.npz" --model-config "$MODEL_CONFIG" \
        --train-config "$TRAIN_CONFIG" --splits "$data/splits/train.json" "$data/splits/val.json" \
        --set threads="$THREADS_PER_JOB" --device "$DEVICE" --out-dir "$out" "${start[@]}"
}
if [ "$PER_MOLECULE" = 1 ]; then every "${molecules[@]}"; else every all; fi
