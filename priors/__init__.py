"""What a plausible body is: priors as objectives, imported as `fitkit.priors`."""

if __name__ != "fitkit.priors":
    raise ImportError("import it as fitkit.priors; the folder priors/ is not a package of its own")

from fitkit.priors.library import (
    default_pose_prior,
    flow_prior,
    gaussian_prior,
    load_prior,
    mixture_prior,
    save_prior,
    shipped,
    vae_prior,
)
from fitkit.priors.limits import JointLimits
from fitkit.priors.pool import PooledPrior
from fitkit.priors.pose import PosePrior
from fitkit.priors.shape import ShapePrior
from fitkit.priors.upright import UprightPrior
from fitkit.priors.vposer import load_vposer

__all__ = [
    "JointLimits",
    "PooledPrior",
    "PosePrior",
    "ShapePrior",
    "UprightPrior",
    "default_pose_prior",
    "flow_prior",
    "gaussian_prior",
    "load_prior",
    "load_vposer",
    "mixture_prior",
    "save_prior",
    "shipped",
    "vae_prior",
]
