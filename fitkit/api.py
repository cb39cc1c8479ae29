"""fit(): observe, start, solve; nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from fitkit.body import BodyModel, open_body
from fitkit.body.smpl import read_smpl
from fitkit.camera import Camera
from fitkit.initialise import make_starts
from fitkit.jumps import WORTHWHILE, evidence, kinematic_jumps
from fitkit.keypoints import Keypoints
from fitkit.objectives import (
    IUV,
    BoneDirections,
    Keypoints2D,
    Normals,
    Objective,
    Parts,
    Sum,
    SurfacePoints,
)
from fitkit.observation import Observation
from fitkit.observe import choose_people, load_image, observation_from_keypoints, observe, photo_camera
from fitkit.priors import JointLimits, ShapePrior, UprightPrior, default_pose_prior
from fitkit.problem import Problem
from fitkit.registry import get_solver
from fitkit.result import FitResult
from fitkit.solve import needed, solve
from fitkit.solver import Chain, Outcome, Solver, Stage
from fitkit.state import State

if TYPE_CHECKING:
    import PIL.Image

    from fitkit.observe import Photo

# Fewer keypoints than this do not determine where a body is, let alone its pose.
FEWEST_KEYPOINTS = 4
_RIGID = ("global_orient", "transl")


def default_objective(observation: Observation | None = None) -> Sum:
    """The sum that `fit` lowers: keypoints, bone directions, priors of pose, stand and shape, joint limits.

    Where part maps, IUV, normals or points of the surface were observed, their terms count too. The person's mask
    does not: a detector's mask is that of clothes and hair (add `Outline()` or `Silhouette()` where it should).

    Args:
        observation: leaves out what was not observed; None for what a detector gives.
    """
    objective = Keypoints2D() + default_pose_prior() + UprightPrior() + ShapePrior() + JointLimits()
    if observation is None or observation.world is not None:
        objective = objective + BoneDirections()
    if observation is not None:
        for term in (SurfacePoints(), IUV(), Parts(), Normals()):
            if all(observation.has(part) for part in term.requires):
                objective = objective + term
    return objective


def default_stages(steps: int, jumps: bool = False, dense: bool = False) -> tuple[Stage, ...]:
    """The schedule of a gradient-based fit from several starts: place, shape coarsely, choose, refine.

    Args:
        steps: of the stage that refines; the others take their share of it.
        jumps: whether every limb is tried the other way in depth as well (`fitkit.jumps`), and the winner is the
            answer that holds the most probability instead of the lowest energy.
        dense: whether the objective has terms that need the whole surface (masks, rendered pictures). They cost more
            than all others together and reach less far, so they only choose among the starts that the others have
            refined, and refine the one that is left.
    """
    seen = ("keypoints_2d", "keypoints_3d", "directions", "iuv", "surface")
    strong = {"pose_prior": 4.0, "shape_prior": 4.0, "directions": 5.0}
    cheap = _without_dense if dense else None
    few, quarter, half = max(5, steps // 6), max(8, steps // 4), max(8, steps // 2)
    begin = (
        Stage(
            max(6, steps // 5),
            _RIGID,
            widen=None,
            only=seen,
            keep_of_each=2,
            rank=cheap,
            hinted=True,
            name="place",
        ),
        Stage(
            quarter,
            weights=strong,
            widen=3.0,
            dense=False,
            keep=1 if jumps else 2,
            rank=cheap,
            hinted=True,
            name="coarse",
        ),
    )
    if jumps:
        other = Stage(few, dense=False, branch=_other_limbs, keep=2, rank=evidence, name="jumps")
        fine = Stage(steps, dense=False, keep=1, rank=evidence, name="fine")
        refine: tuple[Stage, ...] = (other, fine)
    else:
        refine = (Stage(steps, dense=False, keep=1 if dense else None, name="fine"),)
    if not dense:
        return (*begin, *refine)
    # Softer first: the pull of a rendered picture ends where its blur ends.
    return (*begin, *refine, Stage(quarter, widen=3.0, name="soft"), Stage(half, name="dense"))


def _without_dense(problem: Problem, state: State) -> Tensor:
    return problem.staged(dense=False).energy(state)


def _other_limbs(problem: Problem, state: State) -> State:
    return kinematic_jumps(problem.body, state, WORTHWHILE)


@torch.inference_mode(False)  # derivatives are taken inside, also for a caller who has switched them off
def fit(
    source: str | Path | np.ndarray | PIL.Image.Image | Photo | Observation,
    *,
    solver: str | Solver | Chain = "lm",
    objective: Objective | None = None,
    stages: Sequence[Stage] | None = None,
    jumps: bool = False,
    start: State | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    body: BodyModel | str | Path | None = None,
    people: Literal["all", "largest"] | int = "all",
    boxes: np.ndarray | Tensor | None = None,
    keypoints: Keypoints | None = None,
    camera: Camera | None = None,
    focal: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
    on_step: Callable[[int, str], None] | None = None,
    max_seconds: float | None = None,
    states: bool = False,
) -> FitResult:
    """Fit 3D bodies to the people in a photo.

    Args:
        source: a photo (file, `(H, W, 3)` RGB array, Pillow image), or what was observed in one.
        solver: by name (`fitkit.solver_names()`), several as a chain (`"lm+lbfgs"`), or one with settings of its own.
        objective: what is lowered; `default_objective()` of what was observed otherwise.
        stages: schedule of the (first) solver; its own or `default_stages` otherwise.
        jumps: whether to try every limb the other way in depth as well (see `default_stages`): better where no 3D
            guess of a detector says which way, for one and a half to three times the time. Refused with a solver that
            has a start of its own.
        start: `(B)` bodies to start from, one per person, such as `result.state` of an earlier fit; the solver's own
            (`Solver.start`) or several poses of the prior's mean otherwise. Parts that it has (hands, jaw,
            expression) are fitted too.
        bounds: of blocks of the State (see `Problem`): `{"betas": (-3, 3)}`.
        body: a model, or a file of SMPL, SMPL+H or SMPL-X; the embedded open body otherwise.
        people: "all", the "largest", or the number of one as "all" numbers them.
        boxes: `(N, 4)` x, y, w, h in pixels: people to look at instead of searching for them.
        keypoints: of another detector, pixels of the full photo: nothing is detected then.
        camera: calibrated intrinsics of the full photo.
        focal: length in pixels, where only that is known; otherwise EXIF's, otherwise max(H, W).
        device: such as "cuda"; the CPU otherwise.
        dtype: of the solve.
        on_step: called with (step, stage) as the solver goes.
        max_seconds: wall clock after which the solver stops where it is, looked at between steps (a step of a
            `scipy-*` solver is the whole run).
        states: whether the result keeps the state of every step, `result.trace.states`.

    Returns:
        All people as one batch: found ones largest first, given boxes and keypoints in their own order; an empty
        batch where nobody was found. Whoever could not be fitted has a `status` that says why;
        `.raise_if_failed()` makes that an exception.

    Raises:
        ValueError: bad input; the message names it, what came and what was expected.
        FileNotFoundError: the photo or the body file is missing.
        DetectorUnavailable: MediaPipe is needed and not installed.

    Example:
        >>> import numpy as np
        >>> len(fit(np.zeros((64, 64, 3), np.uint8)))  # nobody there
        0
    """
    _check(objective, solver, keypoints, device, dtype)
    if stages is not None and len(stages) == 0:
        raise ValueError("stages is empty, expected one or more, or None for the solver's own")
    if jumps and stages is not None:
        raise ValueError(
            "jumps and stages given together: jumps are stages of their own (see default_stages)"
        )
    observation = _observe(source, people, boxes, keypoints, camera, focal)
    model = _body(body).to(dtype, device or "cpu")
    observation.check()
    observation = observation.to(model.dtype).to(str(model.device))
    chosen = get_solver(solver) if isinstance(solver, str) else solver
    objective = objective if objective is not None else default_objective(observation)
    name = source if isinstance(source, str | Path) else getattr(source, "source", "")
    if len(observation) == 0:
        return _nobody(model, observation, objective, chosen, str(name))
    problem = Problem(model, observation, objective, bounds=bounds or {})
    given, count, hint, kinds, schedule = _begin(problem, chosen, start, jumps)
    solution = solve(
        problem, chosen, given, stages or schedule, count, hint, kinds, on_step, max_seconds, states
    )
    return FitResult(
        state=solution.state,
        body=model,
        observation=observation,
        values=solution.values,
        energy=solution.energy,
        status=_status(solution.outcome, observation, model),
        trace=solution.trace,
        alternatives=solution.alternatives,
        solver=chosen.name,
        seconds=torch.full((len(observation),), solution.seconds / len(observation)),
        source=str(name),
        networks=_networks(chosen),
    )


def _check(
    objective: object,
    solver: object,
    keypoints: object,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> None:
    """Refuse what cannot be meant before anything is detected or loaded."""
    if not isinstance(objective, Objective | None):
        hint = f": call it, {objective.__name__}(...)" if inspect.isfunction(objective) else ""
        raise ValueError(f"objective is {type(objective).__name__}, expected an Objective{hint}")
    if not isinstance(solver, str | Solver | Chain):
        hint = f": make one, {solver.__name__}()" if inspect.isclass(solver) else ""
        raise ValueError(f"solver is {type(solver).__name__}, expected a name, a Solver or a Chain{hint}")
    if not isinstance(keypoints, Keypoints | None):
        got = type(keypoints).__name__
        raise ValueError(f"keypoints is {got}, expected Keypoints (see keypoints_from_file)")
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch {torch.__version__} sees no CUDA device")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype {dtype}, expected torch.float32 or torch.float64")


def _observe(
    source: str | Path | np.ndarray | PIL.Image.Image | Photo | Observation,
    people: Literal["all", "largest"] | int,
    boxes: np.ndarray | Tensor | None,
    keypoints: Keypoints | None,
    camera: Camera | None,
    focal: float | None,
) -> Observation:
    if isinstance(source, Observation):
        given = {"boxes": boxes, "keypoints": keypoints, "camera": camera, "focal": focal}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ValueError(f"{extra} given beside an Observation, which already says what was seen")
        return choose_people(source, people)
    if keypoints is None:
        return observe(source, people, boxes, camera, focal)
    if boxes is not None:
        raise ValueError(
            "boxes and keypoints given together: boxes are for detecting, which keypoints make needless"
        )
    photo = load_image(source)
    seen = observation_from_keypoints(keypoints, camera=photo_camera(photo, camera, focal))
    return choose_people(replace(seen, image=photo.pixels), people, photo.source)


def _body(body: BodyModel | str | Path | None) -> BodyModel:
    if body is None:
        return open_body()
    return body if isinstance(body, BodyModel) else BodyModel(read_smpl(body))


def _begin(
    problem: Problem, solver: Solver | Chain, start: State | None, jumps: bool
) -> tuple[State, int, Observation | None, tuple[int, ...] | None, Sequence[Stage] | None]:
    """Starts, how many for each person, their hints and kinds, and the schedule (None: the first solver's own)."""
    model, observation = problem.body, problem.observation
    first = solver.solvers[0] if isinstance(solver, Chain) else solver
    own, learned = None, type(first).start is not Solver.start
    if learned and start is None:
        needed(problem, solver)
        with torch.no_grad():
            own = first.start(problem)
        learned = own is not None
    if learned and jumps:
        raise ValueError(
            f"jumps with solver {first.name}, which has a start of its own: expected jumps=False, or a solver that "
            "fits from several starts (such as lm)"
        )
    if own is not None:
        return _given(own, model, len(problem), f"the start of solver {first.name}"), 1, None, None, None
    schedule = default_stages(first.max_steps, jumps, problem.starts_without_dense)
    if start is not None:
        return _given(start, model, len(problem)), 1, None, None, None if learned else schedule[2:]
    starts = make_starts(model, observation, _start_pose(model))
    return starts.state, starts.count, starts.hint, starts.kinds, (() if jumps else first.stages) or schedule


def _given(start: State, model: BodyModel, people: int, name: str = "start") -> State:
    """A caller's start, or a solver's, on the model's device, in its dtype."""
    if not isinstance(start, State):
        raise ValueError(f"{name} is {type(start).__name__}, expected a State")
    if len(start) != people:
        raise ValueError(f"{name} has {len(start)} people, but {people} were observed")
    model.check(start)
    return start.to(model.dtype).to(str(model.device))


def _start_pose(model: BodyModel) -> Tensor:
    """The prior's mean, arms down; joints beyond the 21 of SMPL-X's body (SMPL's hands) at rest."""
    mean = default_pose_prior().mean_pose().to(model.device, model.dtype)
    eye = torch.eye(3, dtype=model.dtype, device=model.device).expand(
        model.layout["body_pose"] - len(mean), 3, 3
    )
    return torch.cat([mean, eye])


def _status(outcome: Tensor, observation: Observation, model: BodyModel) -> tuple[Outcome, ...]:
    seen = observation.keypoints
    if seen is None:  # a start was given, and nothing says how much of a person would be enough
        return tuple(Outcome(code) for code in outcome.tolist())
    enough = ((seen.confidence > 0.1) & model.available(seen.set.name)).sum(1) >= FEWEST_KEYPOINTS
    pairs = zip(outcome.tolist(), enough.tolist(), strict=True)
    return tuple(Outcome(code) if fine else Outcome.NOT_ENOUGH_SEEN for code, fine in pairs)


def _nobody(
    model: BodyModel, observation: Observation, objective: Objective, solver: Solver | Chain, name: str
) -> FitResult:
    none = torch.zeros(0, dtype=model.dtype, device=model.device)
    values = {term.name: none for term in objective.terms()}
    return FitResult(
        state=model.neutral(0),
        body=model,
        observation=observation,
        values=values,
        energy=none,
        status=(),
        trace=None,
        solver=solver.name,
        seconds=torch.zeros(0),
        source=name,
        networks=_networks(solver),
    )


def _networks(solver: Solver | Chain) -> tuple[str, ...]:
    """Of the solvers that run one, each once."""
    members = solver.solvers if isinstance(solver, Chain) else (solver,)
    return tuple(dict.fromkeys(each.network for each in members if each.network))
