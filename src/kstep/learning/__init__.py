"""From a cold start to a network: the loop that makes its own labels.

target.py says what is learned (a molecule; region_target.py: the QM region of a QM/MM system, coupling_fit.py its
coupling).  learner.py is the one loop, explorer.py what moves and asks in it, with the chains of chains.py, which says
what a hole is too; ending.py when more labels cease to pay, progress.py what is written down, cold_start.py the way in
before a run, earlier.py what is kept of another learning.  relearning.py goes on in the middle of a run;
turned_torsions.py are starts behind barriers; teacher_labels.py are labels without any true call.  truth_ladder.py
learns a cheap method and then only the difference to a dear one (climber.py), on the surface of corrected.py.
"""
