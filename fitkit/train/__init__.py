"""Training of the networks that ship, and of your own: `python -m fitkit.train.hund`."""
