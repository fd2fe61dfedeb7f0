#!/usr/bin/env bash
# A hybrid run of every molecule, and its controls at the same number of true calls beside it:
# OUT_DIR/hybrid/<molecule>/{<scheme>_k<k>,jump_k<k>_bare,plain,plain_<dt>fs}.npz.
#
#   SCHEME=jump K_STEPS="4 8" DEVICE=cuda bash run_hybrid_qm.sh
#
# --help lists its variables, which are flags too; it is `kstep batch sample`.
source "$(dirname "${BASH_SOURCE[0]}")/scripts/batch.sh" sample "$@"
