"""Training, in the order in which it reads best.

data        windows (of trajectories), dataset (a file of them), labels (a file of single geometries), splits,
            rotations, equivalent_atoms, batches (a dataset in memory -> ragged batches)
loss        losses (its terms), normalisation (what they and the network are scaled by), objective (what is
            differentiated), validation_error
steps       train_config, optimiser, step_plan (which windows a step takes), distributed (several
            processes take it), training_state (for --resume), training_log, initial_weights (of a pretrained network)
trainers    window_training: windows of one or many molecules, epoch after epoch, any network and head (04_train.py);
            label_fit: the energies and forces of one molecule in one go, between two rounds of self-learning
beside them whitening (what label_fit learns in), distillation (labels that another network gives)
"""
