"""What a plausible body is: priors as objectives, imported as `fitkit.priors`."""

if __name__ != "fitkit.priors":
    raise ImportError("import it as fitkit.priors; the folder priors/ is not a package of its own")

from fitkit.priors.gaussian import GaussianPosePrior
from fitkit.priors.limits import JointLimits
from fitkit.priors.shape import ShapePrior

__all__ = ["GaussianPosePrior", "JointLimits", "ShapePrior"]
