"""HUND, Human Neural Descent: recurrent stages that lower an objective without its gradient."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import Rows
from fitkit.body.model import BodyModel
from fitkit.coordinates import PoseLatent
from fitkit.objectives.guess import Guess, GuessedDepth
from fitkit.observation import Observation
from fitkit.prediction import Prediction
from fitkit.problem import Problem
from fitkit.solver import Outcome, Solver, Status
from fitkit.solvers.hund.context import FEWEST, POINTS, in_place, read_context
from fitkit.solvers.hund.frame import Frame
from fitkit.solvers.hund.network import Feedback, HundNetwork, Recall, Settings
from fitkit.solvers.hund.weights import load_network
from fitkit.state import State

# How far what follows in a chain may move the answer at `hold` 1: rotations by so many of the network's own errors on
# people whom it had never seen, relative depths by so many metres. Chosen on such people of the training subjects.
_TURNS, _DEPTH = 2.0, 0.07


@dataclass(frozen=True)
class HundMemory(Rows):
    """What a stage hands to the next, one row per person.

    Attributes:
        frame: of each person.
        context: `(B, C)` context code.
        numbers: `(B, D)` of the state, not orthonormal as the state itself is.
        recall: of the LSTM.
        feedback: what the objective says at the state.
        made: `(B,)` stages.
    """

    frame: Frame
    context: Float[Tensor, "B C"]
    numbers: Float[Tensor, "B D"]
    recall: Recall
    feedback: Feedback
    made: Tensor

    def __len__(self) -> int:
        return len(self.made)


class HUND(Solver):
    """Human Neural Descent (Zanfir et al., CVPR 2021): a recurrent network that learned to lower the objective.

    Every stage reads the state, what it remembers, the values of the objective's terms and a code of what was
    observed, and writes a new state; no gradient is taken. `fit` begins at the network's own initial state; given a
    start (`fit(start=...)`, or as a later link of a chain) it begins there.

    What follows in a chain (`"hund+lm"`) is held near the network's answer: in depth, which the network knows and the
    photo does not (`GuessedDepth`), and loosely in rotations and shape (`Guess`). A full descent of the objective alone
    comes nearer to the noisy points, no nearer to the true ones, and loses in space.

    Args:
        weights: file of a network; None for the one that ships.
        stages: how many are made; None for as many as in training.
        hold: factor on how strongly what follows in a chain is held near the answer; 0 does not.
        pose: for a network whose pose is that of a flow's latent numbers: the flow.

    Raises:
        FileNotFoundError: no such file of weights.
        ValueError: a file of something else; no stages, or a negative `hold`.
    """

    name = "hund"
    reads = frozenset({"keypoints", "world", "mask", "parts", "iuv", "box"})

    def __init__(
        self,
        weights: str | Path | None = None,
        stages: int | None = None,
        hold: float = 1.0,
        pose: PoseLatent | None = None,
    ) -> None:
        self.model, self.network = load_network(weights)
        self.max_steps = self.model.settings.stages if stages is None else stages
        if not isinstance(self.max_steps, int) or self.max_steps < 1 or not 0 <= hold < float("inf"):
            raise ValueError(f"hund: {stages} stages and hold {hold}, expected 1 stage or more and 0 or more")
        if self.model.settings.latent and pose is None:
            raise ValueError(
                "hund: a network of latent numbers, expected the flow that they are of as `pose`"
            )
        self.hold, self.pose = hold, pose if self.model.settings.latent else None

    # -- as a solver -----------------------------------------------------------------------------------------

    def start(self, problem: Problem) -> State:
        """The network's initial state."""
        refuse_strange(self.model.settings, problem)
        frame, _, numbers = self._seen(problem)
        return frame.decode(numbers.to(problem.body.dtype), self.model.settings.betas)

    def init(self, problem: Problem, state: State) -> tuple[HundMemory, Status]:
        refuse_strange(self.model.settings, problem)
        warn_of_strange(self.model.settings, problem)
        frame, code, own = self._seen(problem)
        model = self._on(problem.body)
        state = _own_shape(state, model.settings)
        feedback, values = look(model.settings, problem, frame, state, None)
        made = torch.zeros(len(state), dtype=torch.long, device=code.device)
        numbers = self._resumed(frame, own, state)
        memory = HundMemory(frame, code, numbers, model.recall(len(state)), feedback, made)
        return memory, self._status(values, made)

    def step(self, problem: Problem, state: State, memory: HundMemory) -> tuple[State, HundMemory, Status]:
        model = self._on(problem.body)
        numbers, recall = model.stage(memory.numbers, memory.recall, memory.feedback, memory.context)
        moved = memory.frame.decode(numbers.to(problem.body.dtype), model.settings.betas)
        state = problem.within_bounds(replace(state, **moved.parts()))
        feedback, values = look(model.settings, problem, memory.frame, state, memory.feedback)
        made = memory.made + 1
        memory = replace(memory, numbers=numbers, recall=recall, feedback=feedback, made=made)
        return state, memory, self._status(values, made)

    def hand_over(self, problem: Problem, state: State) -> Problem:
        """The problem with the answer as a guess, and terms that stay near it."""
        theirs = any("guess" in term.requires for term in problem.objective.terms())
        if self.hold == 0 or theirs:
            return problem
        ease = 1 / self.hold**0.5
        spread = (_TURNS * ease * self.model.spread).tolist()
        near = Guess(spread[:-1], shape=spread[-1]) + GuessedDepth(_DEPTH * ease)
        own = State(state.global_orient, state.body_pose, state.betas, state.transl)
        return replace(
            problem,
            observation=replace(problem.observation, guess=own),
            objective=problem.objective + near,
        )

    def _resumed(self, frame: Frame, own: Tensor, state: State) -> Tensor:
        """Numbers of a start; of the network's own, which are not orthonormal, as they are: so it was trained."""
        first = frame.decode(own.to(state.transl.dtype), self.model.settings.betas)
        parts = first.parts()
        off = [(getattr(state, name) - part).flatten(1).abs().amax(1) for name, part in parts.items()]
        same = (torch.stack(off) < 1e-6).all(0)
        return torch.where(same[:, None], own, frame.encode(state).to(own.dtype))

    def _seen(self, problem: Problem) -> tuple[Frame, Tensor, Tensor]:
        """Frame, context code and numbers of the initial state, worked out once for an observation."""
        observation, model = problem.observation, self._on(problem.body)

        # Without 3D labels in training there were no directions either: what such a network made of them is noise.
        told = observation if "directions" in model.settings.terms else observation.without(["world"])

        def make() -> tuple[Frame, Tensor, Tensor]:
            frame = Frame.of(told, self.pose)
            return frame, *model.begin(read_context(told, frame))

        parts = tuple(sorted(part for part in self.reads if told.has(part)))
        return observation.once(("hund", self.network, self.pose, parts), make)

    def _on(self, body: BodyModel) -> HundNetwork:
        """The network where the body is."""
        if self.model.mean.device != body.device:
            self.model = self.model.to(body.device)
        return self.model

    def _status(self, values: Tensor, made: Tensor) -> Status:
        energy = values.sum(1)
        outcome = torch.where(made >= self.max_steps, Outcome.FINISHED, Outcome.RUNNING)
        return Status(torch.where(torch.isfinite(energy), outcome, Outcome.NOT_FINITE), energy, values)


def refuse_strange(settings: Settings, problem: Problem) -> None:
    """Refuse what the network was not made for.

    Raises:
        ValueError: another body; not all of it free; keypoints of a set that has too few of the network's points.
    """
    if problem.body.name != settings.body:
        raise ValueError(
            f"hund: a network for the body {settings.body}, got {problem.body.name}: train one for it, "
            "python -m fitkit.train.hund --body"
        )
    written = {"global_orient", "body_pose", "betas", "transl"}
    if problem.free is not None and not written <= set(problem.free):
        raise ValueError(f"hund: free blocks {problem.free}, expected all of {sorted(written)}")
    seen = problem.observation.keypoints
    if seen is not None and seen.set.name not in settings.sets:
        known = sum(name in POINTS for name in seen.set.names)
        if known < FEWEST:
            raise ValueError(
                f"hund: keypoints of the set {seen.set.name}, of which the network knows {known} points; expected "
                f"{FEWEST} or more, best one of {settings.sets}"
            )


def warn_of_strange(settings: Settings, problem: Problem) -> None:
    """Warn of what the network was not trained with."""
    seen = problem.observation.keypoints
    if seen is None:
        warnings.warn("hund: the network was trained with keypoints, and there are none", stacklevel=2)
    elif seen.set.name not in settings.sets:
        warnings.warn(
            f"hund: the network was trained with keypoints of {settings.sets}, not {seen.set.name}: it takes those "
            "of the same name",
            stacklevel=2,
        )
    strange = [term.name for term in problem.objective.terms() if term.name not in settings.terms]
    if strange:
        warnings.warn(
            f"hund: the network was trained without {strange}: it sees their values and does not know what lowers "
            'them; what follows in a chain ("hund+lm") does',
            stacklevel=2,
        )


def look(
    settings: Settings, problem: Problem, frame: Frame, state: State, before: Feedback | None
) -> tuple[Feedback, Float[Tensor, "B T"]]:
    """What the objective says at a state, for the network, and the values of its terms.

    Args:
        settings: of the network.
        problem: of B people.
        frame: of the same people.
        state: of the same people.
        before: at the state before; None at the start.
    """
    pred = Prediction(problem.body, state, problem.observation.camera)
    found = problem.values_at(pred)
    values = torch.stack(list(found.values()), 1)
    single = values.to(torch.float32)
    gradient = None
    if settings.gradient:
        gradient = _gradient(problem, frame, state, settings.betas)
    names = tuple(settings.terms.index(name) + 1 if name in settings.terms else 0 for name in found)
    last = single if before is None else before.values
    residuals = _residuals(pred, problem.observation, frame).to(torch.float32)
    return Feedback(names, single, last, residuals, gradient), values


def _residuals(pred: Prediction, observation: Observation, frame: Frame) -> Float[Tensor, "B K 3"]:
    """Where the body's points lie from the seen ones, in sides of the frame, and how far; zero for unseen ones."""
    seen = observation.keypoints
    if seen is None:
        return frame.size.new_zeros(len(frame), len(POINTS), 3)
    away = (pred.keypoints_2d(seen.set.name) - seen.xy) / frame.size[:, None]
    away = away.clamp(-1, 1) * seen.confidence[..., None] * pred.body.available(seen.set.name)[:, None]
    return in_place(torch.cat([away, away.norm(dim=-1, keepdim=True)], 2), seen.set)


def _gradient(problem: Problem, frame: Frame, state: State, betas: int) -> Float[Tensor, "B D"]:
    """Of the logarithm of the energy in the state's numbers, at most 1 long."""
    with torch.enable_grad():
        numbers = frame.encode(state).detach().requires_grad_(True)
        energy = problem.energy(frame.decode(numbers, betas)).log1p()
        (slope,) = torch.autograd.grad(energy.sum(), numbers)
    slope = torch.nan_to_num(slope)
    return (slope / slope.norm(dim=1, keepdim=True).clamp_min(1)).to(torch.float32)


def _own_shape(state: State, settings: Settings) -> State:
    """A start with as many betas as the network writes; what it does not write stays at rest."""
    gap = settings.betas - state.betas.shape[1]
    return replace(state, betas=torch.nn.functional.pad(state.betas, (0, gap))) if gap > 0 else state
