"""Training of learned solvers, those that ship or your own: `python -m fitkit.train.hund`."""
