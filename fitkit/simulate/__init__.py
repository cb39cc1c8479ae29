"""Observations of bodies that are known: what a perfect network would see."""

from fitkit.simulate.maps import simulate_maps

__all__ = ["simulate_maps"]
