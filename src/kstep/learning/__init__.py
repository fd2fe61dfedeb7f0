"""From a cold start to a network: the loop that makes its own labels.

target.py says what is learned (a molecule; region_target.py: the QM region of a QM/MM system, coupling_fit.py its
coupling), learner.py is the one loop, progress.py what it writes down, cold_start.py the way in before a run.
relearning.py goes on in the middle of one; turned_torsions.py are starts behind barriers; teacher_labels.py are
labels without any true call.
"""
