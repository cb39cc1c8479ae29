"""PosePrior: a density over the rotations of some joints, as a term of an objective."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit.objectives.base import Objective, Residual
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.priors.density import Density, Flow, Quadratic
from fitkit.priors.representation import Representation, numbers_of, representation
from fitkit.state import ROTATIONS

NOT_A_ROTATION = 1e-2


class PosePrior(Objective):
    """How unlikely a pose is, by a density over the numbers of its rotations.

    The value is `-log p` up to a constant for a smooth flow, and `|z|^2 / 2` of the latent numbers for one whose
    log-determinant is piecewise constant (PReLU flows; Zanfir et al., ECCV 2020); a mixture's is that of its best
    part, an autoencoder's that of its posterior mean. Poses are
    those of people as motion capture has them, with isotropic noise on the numbers (`noise`), without which joints
    that never moved would have an infinite likelihood: likelihoods compare only at the same noise.

    Attributes:
        density: over `joints * width` numbers, in float64.
        joints: that it knows, the first ones of `block`.
        representation: how a rotation becomes numbers.
        block: of the State: `body_pose`, or a hand's.
        noise: standard deviation added to the numbers when the density was made.
        calibration: `(Q,)` increasing: `-log_prob` of poses of people that the density never saw, at equal steps of
            probability; None where nobody was held out.
        latent_size: L of `encode`.

    Args:
        density: over the numbers of `joints` rotations.
        joints: see above.
        representation_name: `6d`, `axis-angle` or `matrix`.
        block: see above.
        noise: see above.
        calibration: see above.

    Raises:
        ValueError: a density of another size, no block of joints, or a calibration that is not increasing.
    """

    name = "pose_prior"
    block: str

    def __init__(
        self,
        density: Density,
        joints: int,
        representation_name: str = "6d",
        block: str = "body_pose",
        noise: float = 0.05,
        calibration: Float[Tensor, " Q"] | None = None,
    ) -> None:
        self.representation: Representation = representation(representation_name)
        if block not in ROTATIONS[1:]:
            raise ValueError(f"a pose prior of {block!r}, expected one of {ROTATIONS[1:]}")
        if calibration is not None and not bool((calibration.diff() >= 0).all()):
            raise ValueError("a calibration that is not increasing, expected sorted -log_prob")
        if density.size != joints * self.representation.width:
            raise ValueError(
                f"a density over {density.size} numbers for {joints} joints in {representation_name}, "
                f"expected {joints * self.representation.width}"
            )
        self.density = copy.deepcopy(density).double().requires_grad_(False).eval()
        self.joints, self.block, self.noise, self.calibration = joints, block, noise, calibration
        self.latent_size = density.size
        self._moved: dict[tuple[torch.dtype, torch.device], Density] = {}
        if block != "body_pose":
            self.name = block.replace("_pose", "_prior")

    def __getstate__(self) -> dict[str, object]:
        """Without the copies of the density for other dtypes and devices."""
        return self.__dict__ | {"_moved": {}}

    def __copy__(self) -> PosePrior:
        """As a term at another weight: the copies are shared."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    # -- as a term -------------------------------------------------------------------------------------------

    def residual(self, pred: Prediction, obs: Observation) -> Residual:
        if pred.linearizing and self.kernel is None:
            return Residual(self._here(pred).rows[..., None])
        numbers = self._seen(pred)
        return Residual(self._like(numbers).rows(numbers)[..., None])

    def closed_normal(
        self, pred: Prediction, obs: Observation, residual: Residual
    ) -> tuple[Tensor, Tensor] | None:
        """Joint by joint: the numbers of a joint depend on its own turn alone."""
        if self.kernel is not None:
            return None
        pose = self._pose(pred)
        known = pose[:, : self.joints]
        people, joints, width = len(pose), self.joints, self.representation.width
        here = self._here(pred)
        each = self.representation.jacobian(known)
        pulled = self.weight * (each.mT @ here.gradient.view(people, joints, width, 1))
        if here.blocks is not None:
            each = here.blocks @ each
        size = 3 * pose.shape[1]
        gradient, hessian = pose.new_zeros(people, size), pose.new_zeros(people, size, size)
        gradient[:, : 3 * joints] = pulled.flatten(1)
        if here.precision.ndim == 2:
            # One matrix for everybody: one product per joint and not per person.
            columns = here.precision.view(-1, joints, width).transpose(0, 1)
            half = columns @ each.permute(1, 2, 0, 3).reshape(joints, width, 3 * people)
            half = half.view(joints, joints, width, people, 3).permute(3, 1, 2, 0, 4)
        else:
            rows = here.precision.view(people, joints * width, joints, width).transpose(1, 2)
            half = (rows @ each).view(people, joints, joints, width, 3).permute(0, 2, 3, 1, 4)
        half = half.reshape(joints * people, width, 3 * joints)
        turned = torch.bmm(each.mT.reshape(joints * people, 3, width), half)
        hessian[:, : 3 * joints, : 3 * joints] = self.weight * turned.view(people, 3 * joints, 3 * joints)
        return gradient, hessian

    # -- as a coordinate (`coordinates.PoseLatent`) ----------------------------------------------------------------

    def encode(self, rotations: Float[Tensor, "B J 3 3"]) -> Float[Tensor, "B L"]:
        """Latent numbers of poses."""
        return self._flow(rotations).encode(self._numbers(rotations))[0]

    def log_determinant(self, rotations: Float[Tensor, "B J 3 3"]) -> Float[Tensor, " B"]:
        """Logarithm of what the flow stretches volumes by, nats: `log_prob` without its `|z|^2 / 2` and constant."""
        return self._flow(rotations).encode(self._numbers(rotations))[1]

    def decode(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B J 3 3"]:
        """Poses of latent numbers."""
        numbers = self._flow(latent).decode(latent)
        return self.representation.rotations(numbers.unflatten(1, (self.joints, -1)))

    def decode_jacobian(self, latent: Float[Tensor, "B L"]) -> Float[Tensor, "B J 3 L"]:
        """Derivative of the w in `decode(z + dz) = decode(z) exp(w)`; of matrices, near those of rotations."""
        flow = self._flow(latent)
        numbers = flow.decode(latent).unflatten(1, (self.joints, -1))
        moved = flow.decode_jacobian(latent).unflatten(1, (self.joints, -1))
        return self.representation.inverse_jacobian(numbers) @ moved

    # -- as a distribution ---------------------------------------------------------------------------------------

    def log_prob(self, rotations: Float[Tensor, "B J 3 3"]) -> Float[Tensor, " B"]:
        """Natural logarithm of the density of poses, nats for all numbers together; of noisy numbers, see `noise`.

        Raises:
            ValueError: another number of joints, or numbers that are not finite.
        """
        self._check(rotations)
        return self._like(rotations).log_prob(self._numbers(rotations))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count J 3 3"]:
        """Random poses."""
        numbers = self.density.sample(count, generator)
        return self.representation.rotations(numbers.unflatten(1, (self.joints, -1)))

    def mean_pose(self) -> Float[Tensor, "J 3 3"]:
        """Where a fit starts: the mean pose of the motion, or of the largest part of a mixture."""
        return self.representation.rotations(self.density.centre().view(self.joints, -1))

    def plausibility(self, rotations: Float[Tensor, "B J 3 3"]) -> Float[Tensor, " B"]:
        """Share of real poses, of people that the prior never saw, that are no likelier than these: 0 to 1.

        A pose at 0.01 is odder than 99 % of what such people do. It is of the whole pose: one joint bent the wrong way
        in an otherwise average pose need not stand out (joint limits see that). `|z|` says no such thing: on unseen
        people it is larger than a unit normal's.

        Raises:
            ValueError: the prior carries no calibration.
        """
        if self.calibration is None:
            raise ValueError("this prior was not calibrated: nobody was held out when it was made")
        table = self.calibration.to(rotations)
        below = torch.searchsorted(table, -self.log_prob(rotations).contiguous())
        return 1 - below / len(table)

    # ------------------------------------------------------------------------------------------------------------

    def _here(self, pred: Prediction) -> Quadratic:
        """Rows, gradient and curvature at a prediction: one pass for all of them."""
        numbers = self._seen(pred)
        found: Quadratic = pred.once(self, lambda: self._like(numbers).quadratic(numbers))
        return found

    def _pose(self, pred: Prediction) -> Tensor:
        pose: Tensor | None = getattr(pred.state, self.block)
        if pose is None or pose.shape[1] < self.joints:
            got = "none" if pose is None else str(pose.shape[1])
            raise ValueError(f"{self.name}: a {self.block} of {got} joints, expected {self.joints} or more")
        return pose

    def _seen(self, pred: Prediction) -> Tensor:
        """Numbers of a prediction's pose."""
        self._pose(pred)
        return numbers_of(pred, self.block, self.joints, self.representation)

    def _numbers(self, pose: Tensor) -> Tensor:
        return self.representation.numbers(pose[:, : self.joints]).flatten(1)

    def _check(self, rotations: Tensor) -> None:
        shape = tuple(rotations.shape)
        if rotations.ndim != 4 or shape[1] < self.joints or shape[2:] != (3, 3):
            raise ValueError(f"poses of shape {shape}, expected (B, {self.joints} or more, 3, 3) rotations")
        if not bool(torch.isfinite(rotations).all()):
            raise ValueError("poses that are not finite, expected rotation matrices")
        eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
        off = (rotations @ rotations.mT - eye).abs()
        if bool((off > NOT_A_ROTATION).any()):
            raise ValueError(
                f"poses that are off rotations by {float(off.max()):.2g}, expected rotation matrices"
            )

    def _flow(self, like: Tensor) -> Flow:
        density = self._like(like)
        if not isinstance(density, Flow):
            raise ValueError(f"a {density.kind} has no latent numbers: use a flow prior")
        return density

    def _like(self, other: Tensor) -> Density:
        """The density in the dtype and on the device of a tensor, made once."""
        key = (other.dtype, other.device)
        if key not in self._moved:
            with torch.inference_mode(False):  # kept: no later gradient could go through an inference tensor
                self._moved[key] = copy.deepcopy(self.density).to(other.device, other.dtype)
        return self._moved[key]
