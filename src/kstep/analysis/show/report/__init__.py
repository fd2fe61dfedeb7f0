"""The report of one run: answer first, one HTML file that needs nothing else.

    write_report(load_trajectory("run.npz"), "run_report.html")

sections.py says what stands on it, figures.py draws (plotly), molecule.py shows (RDKit, 3Dmol.js), libraries.py packs
the JavaScript of installed packages into the file; ../templates/run.html puts it together.
"""

from kstep.analysis.show.report.write import report_path, write_report

__all__ = ["report_path", "write_report"]
