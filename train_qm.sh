#!/usr/bin/env bash
# Trains one network over all molecules of make_qm_dataset.sh: OUT_DIR/networks/all/best.pt.
#
#   DEVICE=cuda bash train_qm.sh
#
# --help lists its variables, which are flags too; it is `kstep batch train`.
source "$(dirname "${BASH_SOURCE[0]}")/scripts/batch.sh" train "$@"
