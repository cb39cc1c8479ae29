"""Parametric bodies: kinematics and skinning, the embedded open body, the user's SMPL files."""

from fitkit.body.model import BodyData, BodyModel
from fitkit.body.open import open_body

__all__ = ["BodyData", "BodyModel", "open_body"]
