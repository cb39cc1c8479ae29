"""What a fit lowers: differentiable terms, their sums and robust kernels."""

from fitkit.objectives.base import FunctionObjective, Objective, Residual, Sum, objective
from fitkit.objectives.guess import Guess, GuessedDepth
from fitkit.objectives.kernels import L1, GMoF, Huber, Kernel
from fitkit.objectives.keypoints import BoneDirections, Keypoints2D, Keypoints3D
from fitkit.objectives.outline import Outline
from fitkit.objectives.rendered import Normals, Parts, Silhouette
from fitkit.objectives.surface import IUV, SurfacePoints

__all__ = [
    "IUV",
    "L1",
    "BoneDirections",
    "FunctionObjective",
    "GMoF",
    "Guess",
    "GuessedDepth",
    "Huber",
    "Kernel",
    "Keypoints2D",
    "Keypoints3D",
    "Normals",
    "Objective",
    "Outline",
    "Parts",
    "Residual",
    "Silhouette",
    "Sum",
    "SurfacePoints",
    "objective",
]
