"""A run, from settings to its file.  In reading order:

settings           what a run is, checked against its checkpoint before it starts
run_hybrid         one run, top to bottom; production: its macro-steps; loop: the one time loop of every run
run_network        the network of a run, and how its force is computed; network_dynamics: k of its steps
sampler, tuning    free masses, lengths and timesteps, chosen by measurement before production
recorder           frames, restart files, the final trajectory; accounting: what it cost; counters: what happened
certificate        how far the network lies from the truth; tolerance: what follows past a limit
coverage           rotamers seen; aim: whether that is enough, and when a run without a length ends
baseline           one replica of plain MD; baseline_plan: its stretches; _engines: what carries it; _jobs: many of them
network_geometries where a network's own dynamics goes, for training
"""
