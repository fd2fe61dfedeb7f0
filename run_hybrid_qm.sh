#!/usr/bin/env bash
# A hybrid run of every molecule, and its controls at the same number of true calls beside it:
# OUT_DIR/hybrid/<molecule>/{<scheme>_k<k>,jump_k<k>_bare,plain,plain_<dt>fs}.npz.
#
#   SCHEME=jump K_STEPS="4 8" DEVICE=cuda bash run_hybrid_qm.sh
#
#   SCHEME           nested | metropolis | impulse | checked | jump | plain (default: jump; with PER_MOLECULE=1 or
#                    LEARN=1 metropolis)
#   K_STEPS          timesteps per true call, one run for each number (default: 1000 for nested and metropolis, else 8)
#   STEPS            true calls per replica (default: what HYBRID_CONFIG says of length or aim, else 200, so that the
#                    controls are as long as the runs)
#   CHECKPOINT       network; {molecule} in it stands for the name (default: the one train_qm.sh wrote)
#   PER_MOLECULE     1: take the network of each molecule (default: 0)
#   LEARN            1: each run first learns its own network, no CHECKPOINT and no trajectory (default: 0)
#   QM_CONFIG        YAML of the true physics (default: configs/qm.yaml)
#   HYBRID_CONFIG    YAML of everything else (default: configs/hybrid.yaml)
#   LEARN_CONFIG     YAML of learning (default: configs/learn.yaml)
#   CONTROLS         0: no controls beside the hybrids (default: 1: plain MD at the baseline's timestep and, up to
#                    2 fs, at k timesteps in one; beside jump also the same jumps without the network)
#   DEVICE           auto | cpu | cuda, where the network runs (default: auto)
#
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/batch.sh"

begin "$@"
choice PER_MOLECULE 0 1
choice LEARN 0 1
if [ "$PER_MOLECULE$LEARN" = 00 ]; then usual=jump; else usual=metropolis; fi
choice SCHEME $usual nested metropolis impulse checked jump plain
case $SCHEME in nested|metropolis) samples=1 ;; *) samples=0 ;; esac
[ "$LEARN" = 0 ] || [ $samples = 1 ] || fail "LEARN=1 is for SCHEME=nested or metropolis, not $SCHEME"
counts K_STEPS "$([ $samples = 1 ] && echo 1000 || echo 8)"
file QM_CONFIG configs/qm.yaml
file HYBRID_CONFIG configs/hybrid.yaml
length='^(steps|effective_samples|population_error|max_true_calls|max_hours): *[0-9]'
if [ -n "${STEPS:-}" ] || ! grep -Eq "$length" "$HYBRID_CONFIG"; then count STEPS 200; fi
file LEARN_CONFIG configs/learn.yaml
choice CONTROLS 1 0
choice DEVICE auto cpu cuda
read_inputs

if [ "$PER_MOLECULE" = 1 ]; then network=$OUT_DIR/networks/{molecule}/best.pt
else network=$OUT_DIR/networks/all/best.pt; fi
if [ "$LEARN" = 0 ] && [ "$SCHEME" != plain ]; then
    case ${CHECKPOINT:-} in
        "") case $network in *"{molecule}"*) ;; *) made_before "$network" train_qm.sh ;; esac ;;
        *"{molecule}"*) network=$CHECKPOINT ;;
        *) file CHECKPOINT ""; network=$CHECKPOINT ;;
    esac
fi

judge=(hybrid --hybrid-config "$HYBRID_CONFIG" ${STEPS:+--steps "$STEPS"})
[ "$LEARN" = 1 ] || judge+=(--checkpoint "$network")

# What HYBRID_CONFIG says for one scheme alone, plain MD would refuse: the controls go without.
words=$("$python" -m kstep batch plain-flags --hybrid-config "$HYBRID_CONFIG") || exit 2
nothing_special=()
[ -z "$words" ] || mapfile -t nothing_special <<< "$words"

# long_steps: the timesteps of k baseline steps in one that plain MD survives, fs
long_steps() {
    for k in $K_STEPS; do awk "BEGIN {dt = $k * $dt_fs; if ($k > 1 && dt <= 2) printf \"%g\n\", dt}"; done
}
results() {
    local home=$OUT_DIR/hybrid/$1 k dt
    if [ "$SCHEME" != plain ]; then for k in $K_STEPS; do echo "$home/${SCHEME}_k$k.npz"; done; fi
    if [ "$CONTROLS" = 1 ] && [ "$SCHEME" = jump ]; then
        for k in $K_STEPS; do echo "$home/jump_k${k}_bare.npz"; done
    fi
    if [ "$CONTROLS" = 1 ] || [ "$SCHEME" = plain ]; then
        echo "$home/plain.npz"
        for dt in $(long_steps); do echo "$home/plain_${dt}fs.npz"; done
    fi
}
commands() {
    local out name flags code start=()
    [ "$LEARN" = 1 ] || start=(--initial-md "$OUT_DIR/md/$1/trajectory.npz")
    for out in $(results "$1"); do
        [ ! -e "$out" ] || continue
        name=$(basename "$out" .npz)
        case $name in
            plain) flags=(--scheme plain "${nothing_special[@]}") ;;
            plain_*fs) name=${name#plain_} flags=(--scheme plain --dt-fs "${name%fs}" "${nothing_special[@]}") ;;
            jump_*_bare) name=${name%_bare}
               flags=(--scheme jump --k-steps "${name##*_k}" --delta-scale 0
                      --checkpoint "${network//\{molecule\}/$1}") ;;
            *) flags=(--scheme "$SCHEME" --k-steps "${name##*_k}")
               if [ "$LEARN" = 1 ]; then flags+=(--learn --learn-config "$LEARN_CONFIG")
               else flags+=(--checkpoint "${network//\{molecule\}/$1}"); fi ;;
        esac
        run "$python" src/06b_hybrid_integrate_qm.py --qm-config "$QM_CONFIG" --hybrid-config "$HYBRID_CONFIG" \
            --molecule "$OUT_DIR/raw/$1" "${flags[@]}" "${start[@]}" ${STEPS:+--steps "$STEPS"} \
            --device "$DEVICE" --num-workers "$THREADS_PER_JOB" --resume --out "$out" ||
            { code=$?
              # short of its aim, or a control that broke: the file says so
              [ -e "$out" ] && { [ $code = 4 ] || { [ $code = 3 ] && [[ $(basename "$out") == plain_*fs.npz ]]; }; } ||
                  return $code; }
    done
}
every "${molecules[@]}"
