"""HUND: learned descent (Zanfir et al., "Neural Descent for Visual 3D Human Pose and Shape", CVPR 2021)."""

from fitkit.solvers.hund.solver import HUND
from fitkit.solvers.hund.weights import load_network, save_network

__all__ = ["HUND", "load_network", "save_network"]
