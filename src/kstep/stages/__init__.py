"""What each command does: typed settings in, files out.  In the order of the pipeline:

preparation      SMILES -> molecule.npz, structure.pdb, system.xml
physics          a molecule's true potential, from its config: what the runs below are given
plain_md         baselines, one file per molecule
datasets         trajectories -> windows and splits
network_check    a network's size, symmetries and speed
network_training windows -> best.pt
sampling         learning a network where there is none, and the hybrid run

The command line (kstep.cli), Python (kstep.front) and the studies call the same functions.
"""
