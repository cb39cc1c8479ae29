"""Normalizing flows over poses: the two of Zanfir et al., ECCV 2020, and one that knows what a joint is."""

from fitkit.priors.flow.jointwise import JointFlow
from fitkit.priors.flow.prelu import PReLUFlow
from fitkit.priors.flow.realnvp import RealNVP

__all__ = ["JointFlow", "PReLUFlow", "RealNVP"]
