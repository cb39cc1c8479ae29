"""What a fit lowers: differentiable terms, their sums and robust kernels."""

from fitkit.objectives.base import FunctionObjective, Objective, Residual, Sum, objective
from fitkit.objectives.kernels import L1, GMoF, Huber, Kernel
from fitkit.objectives.keypoints import BoneDirections, Keypoints2D, Keypoints3D

__all__ = [
    "L1",
    "BoneDirections",
    "FunctionObjective",
    "GMoF",
    "Huber",
    "Kernel",
    "Keypoints2D",
    "Keypoints3D",
    "Objective",
    "Residual",
    "Sum",
    "objective",
]
