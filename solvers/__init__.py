"""How an objective is lowered: one algorithm per room, imported as `fitkit.solvers`."""

if __name__ != "fitkit.solvers":
    raise ImportError("import it as fitkit.solvers; the folder solvers/ is not a package of its own")

from fitkit.solvers.adam import Adam
from fitkit.solvers.bfgs import BFGS
from fitkit.solvers.lbfgs import LBFGS
from fitkit.solvers.lm import LM

__all__ = ["BFGS", "LBFGS", "LM", "Adam"]
