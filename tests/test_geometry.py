"""Rotations against roma, scipy and automatic differentiation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import roma
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from fitkit import geometry


@pytest.fixture
def vectors() -> Tensor:
    """Axis-angle vectors in float64: random ones, zero, tiny ones and half turns."""
    axes = torch.nn.functional.normalize(
        torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), dim=1
    )
    angles = torch.cat([torch.zeros(1), torch.logspace(-9, -2, 15), torch.linspace(0.1, math.pi, 24)])
    return axes.double() * angles[:, None].double()


def _move(rotations: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """d function(R exp(w)) / dw at zero, by forward-mode differentiation, for each R on its own."""

    def at(rotation: Tensor) -> Tensor:
        def moved(w: Tensor) -> Tensor:
            return function(rotation @ geometry.exp(w))

        return torch.func.jacfwd(moved)(rotation.new_zeros(3))

    return torch.stack([at(rotation) for rotation in rotations])


def test_exp_is_the_rotation_of_scipy_and_roma(vectors: Tensor) -> None:
    rotations = geometry.exp(vectors)
    expected = torch.as_tensor(Rotation.from_rotvec(vectors.numpy()).as_matrix())
    torch.testing.assert_close(rotations, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(rotations, roma.rotvec_to_rotmat(vectors), atol=1e-12, rtol=0)
    single = geometry.exp(vectors.float()).double()
    torch.testing.assert_close(single, expected, atol=1e-6, rtol=0)
    assert geometry.exp(vectors.view(4, 10, 3)).shape == (4, 10, 3, 3)


def test_exp_differentiates_everywhere_and_twice(vectors: Tensor) -> None:
    """At zero the derivative is `hat`; elsewhere it agrees with finite differences; second derivatives are finite."""
    at_zero = torch.func.jacfwd(geometry.exp)(torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(at_zero.permute(2, 0, 1), geometry.hat(torch.eye(3, dtype=torch.float64)))
    for vector in vectors:
        steps = 1e-6 * torch.eye(3, dtype=torch.float64)
        difference = (geometry.exp(vector + steps) - geometry.exp(vector - steps)) / 2e-6
        found = torch.func.jacrev(geometry.exp)(vector).permute(2, 0, 1)
        torch.testing.assert_close(found, difference, atol=1e-8, rtol=0)
        torch.testing.assert_close(torch.func.jacfwd(geometry.exp)(vector).permute(2, 0, 1), found)
        assert torch.isfinite(torch.func.hessian(geometry.exp)(vector)).all()


def test_hat_is_the_cross_product(vectors: Tensor) -> None:
    other = vectors.roll(1, 0)
    product = (geometry.hat(vectors) @ other[..., None])[..., 0]
    torch.testing.assert_close(product, torch.linalg.cross(vectors, other))


def test_six_numbers_there_and_back(vectors: Tensor) -> None:
    rotations = geometry.exp(vectors)
    numbers = geometry.to_6d(rotations)
    torch.testing.assert_close(numbers, torch.cat([rotations[:, :, 0], rotations[:, :, 1]], 1))
    torch.testing.assert_close(geometry.from_6d(numbers), rotations, atol=1e-12, rtol=0)
    # Any six numbers give a rotation: the one that roma's Gram-Schmidt gives.
    loose = numbers + 0.3 * torch.randn(numbers.shape, generator=torch.Generator().manual_seed(1)).double()
    expected = roma.special_gramschmidt(loose.view(-1, 2, 3).mT)
    torch.testing.assert_close(geometry.from_6d(loose), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(geometry.from_6d(loose)), torch.ones(40).double())


def test_six_numbers_move_as_their_jacobian_says(vectors: Tensor) -> None:
    rotations = geometry.exp(vectors)
    expected = _move(rotations, geometry.to_6d)
    torch.testing.assert_close(geometry.to_6d_jacobian(rotations), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_twist_of_a_hinge_is_its_angle(axis: int) -> None:
    angles = torch.linspace(-math.pi + 1e-6, math.pi, 50, dtype=torch.float64)
    vectors = torch.zeros(50, 3, dtype=torch.float64)
    vectors[:, axis] = angles
    twist = geometry.twist(geometry.exp(vectors))
    torch.testing.assert_close(twist[:, axis], angles, atol=1e-12, rtol=0)
    bent = angles.abs() < 3.1  # a half turn about one axis leaves the twist about the others undefined
    torch.testing.assert_close(twist[bent].sum(1), angles[bent], atol=1e-12, rtol=0)


def test_twist_is_that_of_the_quaternion(vectors: Tensor) -> None:
    """Swing and twist: the twist about an axis has the quaternion's scalar part and its part along the axis."""
    vectors = vectors[vectors.norm(dim=1) < 3]
    quaternion = torch.as_tensor(Rotation.from_rotvec(vectors.numpy()).as_quat())
    expected = 2 * torch.atan2(quaternion[:, :3], quaternion[:, 3:])
    torch.testing.assert_close(geometry.twist(geometry.exp(vectors)), expected, atol=1e-12, rtol=0)


def test_twist_moves_as_its_jacobian_says(vectors: Tensor) -> None:
    rotations = geometry.exp(vectors[vectors.norm(dim=1) < 3])
    expected = _move(rotations, geometry.twist)
    torch.testing.assert_close(geometry.twist_jacobian(rotations), expected, atol=1e-10, rtol=0)


def test_geodesic_is_the_angle_between(vectors: Tensor) -> None:
    first, second = geometry.exp(vectors), geometry.exp(vectors.roll(7, 0))
    between = Rotation.from_matrix(first.mT.numpy()) * Rotation.from_matrix(second.numpy())
    angle = geometry.geodesic(first, second)
    # Near a half turn the chord's angle loses half of the digits.
    torch.testing.assert_close(angle, torch.as_tensor(between.magnitude()), atol=1e-7, rtol=0)
    small = geometry.geodesic(torch.eye(3).double().expand(16, 3, 3), geometry.exp(vectors[:16]))
    torch.testing.assert_close(small, vectors[:16].norm(dim=1), atol=1e-15, rtol=1e-6)


def test_yaw_turns_front_towards_the_left_of_the_body() -> None:
    quarter = geometry.yaw(torch.tensor([math.pi / 2], dtype=torch.float64))
    front = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(quarter[0] @ front, torch.tensor([1.0, 0.0, 0.0]).double(), atol=1e-12, rtol=0)
