"""What every test shares: one torch thread, checked types and shapes, and the optional data folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """Eileen Collins from the waist up, 512 x 512 RGB (NASA, public domain)."""
    pytest.importorskip("mediapipe", reason="the extra [detect] is not installed")
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    return np.asarray(data.astronaut())


@pytest.fixture(scope="session")
def body():  # type: ignore[no-untyped-def]  # fitkit is imported after the hook above
    """The embedded body in float64."""
    from fitkit.body import open_body

    return open_body().to(torch.float64)


@pytest.fixture(scope="session")
def people(body):  # type: ignore[no-untyped-def]
    """Makes random bodies in front of a camera, and noisy observations of other random bodies."""
    from dataclasses import replace

    from fitkit import geometry
    from fitkit.camera import Camera
    from fitkit.keypoints import Keypoints, Keypoints3D, get_set
    from fitkit.observation import Observation
    from fitkit.priors import gaussian_prior

    def make(count: int = 3, seed: int = 0):  # type: ignore[no-untyped-def]
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))

        def state():  # type: ignore[no-untyped-def]
            return replace(
                body.neutral(count),
                global_orient=upright @ geometry.exp(0.3 * normal(count, 1, 3)),
                body_pose=gaussian_prior().mean_pose() @ geometry.exp(0.3 * normal(count, 21, 3)),
                betas=normal(count, body.num_betas),
                transl=0.2 * normal(count, 3) + torch.tensor([0, 0, 4.0]),
            )

        camera = Camera.from_size(1000, 800).expand(count).to(torch.float64)
        xyz, points = body.keypoints(state(), "mediapipe33"), get_set("mediapipe33")
        confidence = torch.rand(count, 33, generator=draw, dtype=torch.float64).clamp_min(0.01)
        confidence[:, 5] = 0
        observation = Observation(
            camera,
            Keypoints(points, camera.project(xyz) + 3 * normal(count, 33, 2), confidence),
            Keypoints3D(points, xyz - xyz.mean(1, keepdim=True) + 0.03 * normal(count, 33, 3), confidence),
        )
        return state(), observation

    return make
