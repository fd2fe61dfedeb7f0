"""QM/MM: a QM region, capped with link atoms where bonds are cut, in an OpenMM environment.

    E(x) = E_QM(capped region, in the field of the MM charges) + E_MM(x)

system.py divides an openmm.System, link.py caps the region, embedding.py asks the QM in a field,
coupling.py is the classical form of that field, backend.py puts them together as a `Physics`.
"""
