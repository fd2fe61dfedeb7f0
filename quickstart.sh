#!/usr/bin/env bash
# From a SMILES string to a trained network, a hybrid trajectory and a report against plain MD.
#
#   bash quickstart.sh                                    ethanol, GFN2-xTB
#   bash quickstart.sh "CC(=O)Oc1ccccc1C(=O)O" aspirin    any molecule
#   bash quickstart.sh --mm ["SMILES" name]               the same with OpenMM (MMFF94)
#
# Everything it makes lies in outputs/quickstart/<name>; what is there already is skipped, so an
# interrupted run is continued by the same command.  Move the folder away to start over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi
level=qm
if [ "${1:-}" = "--mm" ]; then level=mm; shift; fi
case "${1:-}" in --*) echo "error: unknown option '$1'; usage: bash quickstart.sh [--mm] [SMILES name]" >&2; exit 2 ;; esac
if [ $# -gt 2 ]; then
    echo "error: $# arguments; usage: bash quickstart.sh [--mm] [\"SMILES\" name] (quote the SMILES)" >&2; exit 2
fi
if [ $# -eq 1 ]; then
    echo "error: a SMILES needs a name: bash quickstart.sh \"$1\" my_molecule" >&2; exit 2
fi
smiles=${1-CCO}
name=${2-ethanol}
if [ -z "$smiles" ]; then
    echo "error: the SMILES is empty; usage: bash quickstart.sh [--mm] [\"SMILES\" name]" >&2; exit 2
fi
if ! [[ $name =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]]; then
    echo "error: name '$name' cannot be a folder; use letters, digits, '_', '-' and '.'" >&2; exit 2
fi

bash scripts/setup_env.sh
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
python=.venv/bin/python
work=outputs/quickstart/$name
[ $level = mm ] && work=$work-mm
mkdir -p "$work"
started=$SECONDS

smiles_file=$work/$name.smi
raw=$work/raw
# a SMILES that could not be prepared, as one mistyped, is in nobody's way
if [ -e "$raw/$name/molecule.npz" ] && [ "$(cat "$smiles_file")" != "$smiles $name" ]; then
    echo "error: $work holds '$(cat "$smiles_file")', not '$smiles $name'; use another name, or move the folder away" >&2
    exit 2
fi
printf '%s %s\n' "$smiles" "$name" > "$smiles_file"

# run RESULT COMMAND...: print the command, run it unless its result is there
run() {
    local result=$1; shift
    if [ -e "$result" ]; then
        printf '\n== %s is there already\n' "$result"
        return
    fi
    printf '\n$ %s\n' "$(printf '%q ' "$@")"
    "$@"
}

# resume FOLDER: '--resume' if an interrupted training left its state there
resume() {
    if [ -e "$1/last.pt" ] && [ ! -e "$1/training.json" ]; then echo --resume; fi
}

run "$raw/$name/molecule.npz" $python src/00_prep_mols.py --smiles "$smiles_file" --out-dir "$raw"

if [ $level = qm ]; then
    physics=(--qm-config configs/qm.yaml)
    hybrid_script=src/06b_hybrid_integrate_qm.py
    run "$work/md/$name/trajectory.npz" $python src/01b_run_qm_baselines.py --smiles-file "$smiles_file" \
        --config configs/qm.yaml --raw "$raw" --out "$work/md" --replicas 2 --resume
else
    physics=(--md-config configs/md.yaml)
    hybrid_script=src/06_hybrid_integrate.py
    run "$work/md/$name/trajectory.npz" $python src/01_run_md_baselines.py --molecule "$raw/$name" \
        --config configs/md.yaml --out "$work/md" --resume
fi

run "$work/dataset_k8.npz" $python src/02_make_dataset.py --md-root "$work/md" --out-root "$work" \
    --splits-dir "$work/splits" --ks 4 8

# the fast energy network for metropolis, and the equivariant network with its jump head
run "$work/energy/training.json" $python src/04_train.py --dataset "$work/dataset_k8.npz" \
    --model-config configs/model_pair_mlp.yaml --train-config configs/train_pair_mlp.yaml \
    --splits "$work/splits/train.json" "$work/splits/val.json" --out-dir "$work/energy" $(resume "$work/energy")
run "$work/jump/training.json" $python src/04_train.py --dataset "$work/dataset_k4.npz" \
    --model-config configs/model.yaml --train-config configs/train.yaml \
    --splits "$work/splits/train.json" "$work/splits/val.json" --out-dir "$work/jump" $(resume "$work/jump")

# hybrids and, at the same number of true calls from the same starts, plain MD
start=(--molecule "$raw/$name" --initial-md "$work/md/$name/trajectory.npz" --replicas 16 --resume)
run "$work/hybrid/metropolis_k1000.npz" $python $hybrid_script "${physics[@]}" --scheme metropolis --k-steps 1000 \
    --checkpoint "$work/energy/best.pt" "${start[@]}" --steps 200 --burn-in-steps 10 --out "$work/hybrid/metropolis_k1000.npz"
run "$work/hybrid/jump_k4.npz" $python $hybrid_script "${physics[@]}" --scheme jump --k-steps 4 \
    --checkpoint "$work/jump/best.pt" "${start[@]}" --steps 200 --burn-in-steps 10 --out "$work/hybrid/jump_k4.npz"
run "$work/hybrid/plain.npz" $python $hybrid_script "${physics[@]}" --scheme plain \
    "${start[@]}" --steps 200 --burn-in-steps 10 --out "$work/hybrid/plain.npz"

if [ $level = qm ]; then
    run "$work/eval/report.html" $python src/05b_eval_qm.py --baseline "$work/md" --hybrid "$work/hybrid" --out-dir "$work/eval"
else
    run "$work/eval/report.html" $python src/05_eval_drift_rdfs.py --baseline "$work/md" --hybrid-runs "$work/hybrid" --out-dir "$work/eval"
fi
printf '\nfinished in %d min %02d s; open %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$work/eval/report.html"
