"""Fit parametric 3D human bodies to photos: one objective, any solver, learned or classical."""

from typing import TYPE_CHECKING, Any

from fitkit._select import Rows, concatenate
from fitkit._version import __version__
from fitkit.body import BodyModel, open_body
from fitkit.camera import Camera
from fitkit.keypoints import Keypoints, Keypoints3D, get_set
from fitkit.objectives import Objective, objective
from fitkit.observation import Observation
from fitkit.problem import Problem
from fitkit.registry import chain, get_solver, register_solver, solver_names
from fitkit.result import FitError, FitResult
from fitkit.solver import Chain, Outcome, Solver, Stage, Status
from fitkit.state import State

if TYPE_CHECKING:
    from fitkit.api import default_objective, fit
    from fitkit.body.smpl import read_smpl
    from fitkit.observe import keypoints_from_file, load_image, observation_from_keypoints

# Looked up when first used: they read priors, weights and pictures, which `import fitkit` should not wait for.
_LAZY = {
    "fit": "fitkit.api",
    "default_objective": "fitkit.api",
    "read_smpl": "fitkit.body.smpl",
    "load_image": "fitkit.observe",
    "keypoints_from_file": "fitkit.observe",
    "observation_from_keypoints": "fitkit.observe",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fitkit' has no attribute {name!r}")


__all__ = [
    "BodyModel",
    "Camera",
    "Chain",
    "FitError",
    "FitResult",
    "Keypoints",
    "Keypoints3D",
    "Objective",
    "Observation",
    "Outcome",
    "Problem",
    "Rows",
    "Solver",
    "Stage",
    "State",
    "Status",
    "__version__",
    "chain",
    "concatenate",
    "default_objective",
    "fit",
    "get_set",
    "get_solver",
    "keypoints_from_file",
    "load_image",
    "objective",
    "observation_from_keypoints",
    "open_body",
    "read_smpl",
    "register_solver",
    "solver_names",
]
