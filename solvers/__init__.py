"""How an objective is lowered: one algorithm per room, imported as `fitkit.solvers`."""

if __name__ != "fitkit.solvers":
    raise ImportError("import it as fitkit.solvers; the folder solvers/ is not a package of its own")

from fitkit.solvers.adam import Adam
from fitkit.solvers.bfgs import BFGS
from fitkit.solvers.hund import HUND
from fitkit.solvers.lbfgs import LBFGS
from fitkit.solvers.lm import LM
from fitkit.solvers.scipy import ScipyBFGS, ScipyLBFGSB, ScipyLeastSquares
from fitkit.solvers.theseus import TheseusLM

__all__ = [
    "BFGS",
    "HUND",
    "LBFGS",
    "LM",
    "Adam",
    "ScipyBFGS",
    "ScipyLBFGSB",
    "ScipyLeastSquares",
    "TheseusLM",
]
