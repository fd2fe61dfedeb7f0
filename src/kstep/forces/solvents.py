"""Implicit solvents: how they are called, and which model has parameters for which.

The solvent of a config is spelled in one way, so that a method's name is one as well.  Of xTB, ALPB and GBSA have
parameters for these solvents alone: Ehlert, Stahn, Spicher, Grimme, J. Chem. Theory Comput. 17, 4250 (2021), and the
list of the xtb documentation ("Implicit Solvation").  PySCF's come from the Minnesota Solvent Descriptor Database.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from kstep.errors import UserError, did_you_mean

NONE = ("none", "gas", "vacuum")
OTHER_NAMES = {
    "h2o": "water", "ch2cl2": "dichloromethane", "methylenechloride": "dichloromethane", "chcl3": "chloroform",
    "cs2": "carbondisulfide", "1,4-dioxane": "dioxane", "dimethylformamide": "dmf", "n,n-dimethylformamide": "dmf",
    "dimethylsulfoxide": "dmso", "ether": "diethylether", "ethylethanoate": "ethylacetate", "furane": "furan",
    "n-hexadecane": "hexadecane", "n-hexane": "hexane", "nhexane": "hexane", "1-octanol": "octanol",
    "woctanol": "wet-octanol", "tetrahydrofuran": "thf"}

ALPB = ("acetone", "acetonitrile", "aniline", "benzaldehyde", "benzene", "dichloromethane", "chloroform",
        "carbondisulfide", "dioxane", "dmf", "dmso", "diethylether", "ethanol", "ethylacetate", "furan", "hexadecane",
        "hexane", "methanol", "nitromethane", "octanol", "wet-octanol", "phenol", "thf", "toluene", "water")
GBSA = ("acetone", "acetonitrile", "benzene", "dichloromethane", "chloroform", "carbondisulfide", "dmso",
        "diethylether", "methanol", "thf", "toluene", "water")
XTB_SOLVENTS = {("alpb", "GFN2-xTB"): ALPB, ("alpb", "GFN1-xTB"): ALPB, ("gbsa", "GFN1-xTB"): GBSA,
                ("gbsa", "GFN2-xTB"): (*GBSA, "dmf", "hexane")}


def spelled(name):
    """A solvent's name as it is written everywhere: lower case, no blanks, one of its names; None for the gas phase."""
    if not isinstance(name, str):
        return name
    word = "".join(name.lower().split())
    return None if word in NONE else OTHER_NAMES.get(word, word)


Solvent = Annotated[str | None, BeforeValidator(spelled)]


def in_solvent(surface: str, model: str, solvent: str | None) -> str:
    """The name of a method's energy surface in a solvent: 'GFN2-xTB/ALPB(water)'."""
    return f"{surface}/{model.upper()}({solvent})" if solvent else surface


def check_xtb_solvent(backend: str, models: tuple[str, ...], method: str, model: str | None, solvent: str) -> str:
    """The model that `backend`, which has `models`, uses for a solvent (None: its first); UserError where it cannot."""
    model = model or models[0]
    if not any(method == with_parameters for _, with_parameters in XTB_SOLVENTS):
        raise UserError(f"{method} has no parameters for an implicit solvent here; use GFN2-xTB or GFN1-xTB")
    if model not in models:
        raise UserError(f"backend {backend} has no {model.upper()}; set solvation_model: {models[0]}, or backend: "
                        "tblite, which has both")
    if solvent not in ALPB:
        raise UserError(f"unknown solvent '{solvent}'{did_you_mean(solvent, [*ALPB, *OTHER_NAMES])}"
                        f"; {model.upper()} of {method} has {', '.join(XTB_SOLVENTS[model, method])}")
    if solvent not in XTB_SOLVENTS[model, method]:
        raise UserError(f"{model.upper()} has no parameters of {method} for {solvent}; it has "
                        f"{', '.join(XTB_SOLVENTS[model, method])}; ALPB has {solvent} (backend: tblite, "
                        "solvation_model: alpb)")
    return model


def refuse_model_alone(model: str | None, solvent: str | None) -> None:
    """UserError for a model of no solvent, which would do nothing."""
    if model is not None and solvent is None:
        raise UserError(f"solvation_model {model} means nothing without a solvent; name one, e.g. solvent: water")
