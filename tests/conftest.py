"""What every test shares: one torch thread, checked types and shapes, and the optional data folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# Small tensors are slower on several threads than on one.
torch.set_num_threads(1)

# Check annotations and jaxtyping's shapes at run time, in tests only. The hook works on imports to come.
if "fitkit" not in sys.modules and os.environ.get("FITKIT_CHECK_TYPES", "1") != "0":
    from jaxtyping import install_import_hook

    install_import_hook("fitkit", "beartype.beartype")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of photos and recordings beside the checkout; tests that need it are skipped without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "no data folder beside the checkout: the checks on real photos and recordings are left out"
        )
    return folder
