"""People and observations that are known: bodies before cameras, and what a detector or a network would see."""

from fitkit.simulate.detector import ANNOTATED, Errors, detect
from fitkit.simulate.maps import simulate_maps, simulate_parts
from fitkit.simulate.people import Crowd, Scene, Variety

__all__ = [
    "ANNOTATED",
    "Crowd",
    "Errors",
    "Scene",
    "Variety",
    "detect",
    "simulate_maps",
    "simulate_parts",
]
