"""Train HUND on people made on the fly: `python -m fitkit.train.hund --motion FILE --out hund.safetensors`.

Every step draws new people from motion capture, shapes and cameras, lets a detector with real errors look at them
(`fitkit.simulate`), unrolls the stages and lowers a meta-loss. An interrupted training goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fitkit.api import default_objective
from fitkit.body import BodyModel, open_body
from fitkit.body.smpl import read_smpl
from fitkit.coordinates import PoseLatent
from fitkit.datasets import Motion, split_by_subject
from fitkit.files import atomic_write, read_checkpoint
from fitkit.metrics import mpjpe, pa_mpjpe
from fitkit.priors.poses import Poses
from fitkit.solvers.hund.network import FEEDBACK, HundNetwork, Settings
from fitkit.solvers.hund.solver import look
from fitkit.solvers.hund.weights import save_network
from fitkit.state import State
from fitkit.train.curve import draw_curve
from fitkit.train.hund_losses import META, BodyPoints, Target, meta_loss, self_supervised, supervised
from fitkit.train.hund_people import SUPERVISION, Batch, Recipe, Source

WATCHED = 256  # people of unseen subjects at every look


def unroll(
    network: HundNetwork, batch: Batch, given: Tensor | None = None, stages: int | None = None
) -> list[State]:
    """The initial state and those after every stage, with gradients; what the objective says passes none on.

    Args:
        network: to run.
        batch: of B people.
        given: `(B, D)` numbers to begin at, NaN for people who begin at the network's own; None for nobody.
        stages: None for the network's.
    """
    settings, frame = network.settings, batch.frame
    code, numbers = network.begin(batch.context)
    if given is not None:
        numbers = torch.where(torch.isnan(given), numbers, given)
    recall, feedback = network.recall(len(code)), None
    states = [frame.decode(numbers, settings.betas)]
    for _ in range(settings.stages if stages is None else stages):
        with torch.no_grad():
            here = frame.decode(numbers.detach(), settings.betas)
            feedback, _ = look(settings, batch.problem, frame, here, feedback)
        numbers, recall = network.stage(numbers, recall, feedback, code)
        states.append(frame.decode(numbers, settings.betas))
    return states


class Training:
    """One network on its way: steps, looks at unseen people, and a file from which it goes on.

    Args:
        settings: of the network.
        recipe: of the training.
        body: in float32.
        learn: poses to learn from.
        watch: poses of people who are not learned from.
        file: of the checkpoint.
        pose: whose latent numbers stand for poses; None for 6D.

    Attributes:
        curve: of every look, what it saw.
    """

    def __init__(
        self,
        settings: Settings,
        recipe: Recipe,
        body: BodyModel,
        learn: Poses,
        watch: Poses,
        file: Path,
        pose: PoseLatent | None = None,
    ) -> None:
        if recipe.supervision != "FS" or not recipe.world:
            settings = replace(settings, terms=tuple(t for t in settings.terms if t != "directions"))
        self.settings, self.recipe, self.body, self.file = settings, recipe, body, file
        self.points = BodyPoints(body)
        self.source = Source(body, learn, recipe, pose)
        self.draw = torch.Generator(body.device).manual_seed(recipe.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = HundNetwork(settings, self._mean_code()).to(body.device)
        self.network = network
        self.average = HundNetwork(settings).to(body.device).requires_grad_(False)
        self.average.load_state_dict(network.state_dict())
        self.optimiser = torch.optim.Adam(network.parameters(), lr=recipe.rate)
        unseen = Source(body, watch, recipe, pose)
        fresh = torch.Generator(body.device).manual_seed(123)
        self.watched = [unseen.batch(WATCHED // 2, fresh, kind) for kind in (1, 0)]
        self.step = 0
        self.curve: list[dict[str, float]] = []
        # Of the motion that is learned from, too.
        weighed = float(learn.motion.rotations.double().sum())
        self.origin = json.dumps([asdict(settings), asdict(recipe), len(learn), weighed])
        if file.is_file():
            self._resume()

    @torch.no_grad()
    def _mean_code(self) -> Tensor:
        """Numbers of the mean over many people: a pose without a heading, upright."""
        fresh = torch.Generator(self.body.device).manual_seed(1)
        batch = self.source.batch(2048, fresh, 1)
        return batch.frame.encode(batch.scene.state).mean(0)

    def run(self, say: Callable[[str], None] = print) -> HundNetwork:
        """Train to the end; the averaged network."""
        began, first = time.perf_counter(), self.step
        while self.step < self.recipe.steps:
            if self.step % self.recipe.look == 0:
                self._look(say, began, first)
            self._step()
        self._look(say, began, first)
        self._calibrate()
        return self.average.eval()

    def _step(self) -> None:
        self.network.train()
        batch = self.source.batch(self.recipe.batch, self.draw)
        states = unroll(self.network, batch, self._starts(batch))
        if self._labelled:
            target = Target.of(self.points, batch.scene, batch.frame.size[:, 0])
            units = [supervised(self.points, state, target) for state in states]
        else:
            units = [self_supervised(batch.problem, state, batch.pictured) for state in states]
        loss = meta_loss(self.recipe.meta, torch.stack(units))
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0 * self.settings.stages)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate_at(self.step)
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
        self.step += 1
        keep = min(1 - 1 / self.recipe.average, self.step / (self.step + 10))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)

    @property
    def _labelled(self) -> bool:
        """Whether this step has 3D labels."""
        turns = self.recipe.supervision.split("+")
        return turns[self.step % len(turns)] == "FS"

    @torch.no_grad()
    def _starts(self, batch: Batch) -> Tensor:
        """Some people begin at the mean pose at any heading, or at the truth gone wrong; NaN for the others."""
        count, device = len(batch.scene), self.body.device
        own = torch.full((count, self.settings.size), torch.nan, device=device)
        toss = torch.rand(count, 1, generator=self.draw, device=device)
        other = torch.randn(own.shape, generator=self.draw, device=device)
        level = torch.rand(count, 1, generator=self.draw, device=device)
        plain = self.network.mean.expand_as(own).clone()
        heading = self.source.crowd.poses.new_tensor(2 * math.pi) * level[:, 0]
        zero = torch.zeros_like(heading)
        turned = [heading.cos(), zero, -heading.sin(), zero, -zero - 1, zero]
        plain[:, :6] = torch.stack(turned, 1)
        wrong = (batch.frame.encode(batch.scene.state) if self._labelled else plain) + 0.3 * level * other
        share = self.recipe.given
        return torch.where(toss < share / 2, plain, torch.where(toss < share, wrong, own))

    # -- looking ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _look(self, say: Callable[[str], None], began: float, first: int) -> None:
        self.average.eval()
        found: dict[str, float] = {"step": float(self.step)}
        for name, batch in zip(("annotated", "detected"), self.watched, strict=True):
            truth = self.body.joints(batch.scene.state)[:, :22]
            for number, state in enumerate(unroll(self.average, batch)):
                joints = self.body.joints(state)[:, :22]
                found[f"{name}, MPJPE {number}"] = 1e3 * float(mpjpe(joints, truth).mean())
            found[f"{name}, PA-MPJPE"] = 1e3 * float(pa_mpjpe(joints, truth).mean())
        if not self.curve or self.curve[-1]["step"] < self.step:
            self.curve.append(found)
        rate = (self.step - first) / max(time.perf_counter() - began, 1e-9)
        left = (self.recipe.steps - self.step) / max(rate, 1e-9) / 60 if rate else math.nan
        last = f"MPJPE {self.settings.stages}"
        say(
            f"step {self.step:6d}  annotated {found[f'annotated, {last}']:6.1f} mm "
            f"(PA {found['annotated, PA-MPJPE']:5.1f})  detected {found[f'detected, {last}']:6.1f} mm "
            f"(PA {found['detected, PA-MPJPE']:5.1f})  {rate:5.2f} steps/s, {left:4.0f} min left"
        )
        self._save()
        draw_curve(self.curve, self.file.with_suffix(".png"), "mm, people who are not trained on")

    @torch.no_grad()
    def _calibrate(self) -> None:
        """What the network is wrong by, on unseen people: what refinement may move its answer by."""
        squares = []
        for batch in self.watched:
            truth, state = batch.scene.state, unroll(self.average, batch)[-1]
            turns = torch.cat([state.global_orient, state.body_pose], 1)
            true = torch.cat([truth.global_orient, truth.body_pose], 1)
            angle = (turns - true).flatten(2).norm(dim=2) / math.sqrt(2)
            shape = (state.betas - truth.betas).square().mean(1, keepdim=True).sqrt()
            squares.append(torch.cat([angle, shape], 1).square())
        self.average.spread.copy_(torch.cat(squares).mean(0).sqrt())
        self.network.spread.copy_(self.average.spread)

    # -- files -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "origin": self.origin,
            "step": self.step,
            "curve": self.curve,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "draw": self.draw.get_state(),
        }
        atomic_write(self.file, lambda file: torch.save(state, file))

    def _resume(self) -> None:
        state = read_checkpoint(self.file, self.body.device)
        if state.get("origin") != self.origin:
            aside = self.file.with_suffix(".other.pt")
            self.file.replace(aside)
            print(f"{self.file} is of other settings: kept as {aside}, and begun anew")
            return
        self.step, self.curve = state["step"], state["curve"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.draw.set_state(state["draw"].cpu())


def settings_for(body: BodyModel, **changes: object) -> Settings:
    """Settings of a network for a body, and the objective of `fit`."""
    terms = tuple(term.name for term in default_objective().terms())
    plain = Settings(body.name, body.layout["body_pose"], body.num_betas, ("mediapipe33", "coco17"), terms)
    return replace(plain, **changes)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train HUND", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    recipe = Recipe()
    parser.add_argument("--motion", type=Path, required=True, help="file of `python -m fitkit.datasets`")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors to write")
    held = "subjects who are watched and not learned from; yours, where the motion is not CMU's"
    parser.add_argument(
        "--held-out", nargs="+", default=["016", "090", "093", "104"], metavar="SUBJECT", help=held
    )
    parser.add_argument("--body", type=Path, help="file of SMPL or SMPL-X; the open body otherwise")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    labels = "3D labels, none, or by turns"
    parser.add_argument("--supervision", default=recipe.supervision, choices=SUPERVISION, help=labels)
    parser.add_argument("--meta", default=recipe.meta, choices=META, help="loss over the stages")
    parser.add_argument("--feedback", default="residuals", choices=FEEDBACK, help="what stages read")
    parser.add_argument(
        "--heatmaps", action="store_true", help="keypoints through a small CNN, as in the paper"
    )
    parser.add_argument("--stages", type=int, default=5, help="of the network")
    parser.add_argument("--steps", type=int, default=recipe.steps, help="of training")
    parser.add_argument("--batch", type=int, default=recipe.batch, help="people per step")
    parser.add_argument(
        "--look", type=int, default=recipe.look, help="steps between looks at unseen subjects"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--work", type=Path, default=Path("out/hund"), help="checkpoint to go on from, and curves"
    )
    given = parser.parse_args()
    if given.out.suffix != ".safetensors" or not given.out.resolve().parent.is_dir():
        parser.error(f"--out {given.out}: expected a name that ends in .safetensors in a folder that exists")
    try:
        there = torch.device(given.device).type != "cuda" or torch.cuda.is_available()
    except RuntimeError:
        there = False
    if not there:
        parser.error(f"--device {given.device}: torch {torch.__version__} sees no such device")
    torch.set_num_threads(1)
    try:
        body = (open_body() if given.body is None else BodyModel(read_smpl(given.body))).to(
            torch.float32, given.device
        )
        learn, watch = split_by_subject(Motion.load(given.motion), given.held_out)
        names = ("supervision", "meta", "steps", "batch", "look", "seed")
        recipe = Recipe(
            **{name: getattr(given, name) for name in names}, pictured=min(recipe.pictured, given.batch)
        )
        settings = settings_for(body, feedback=given.feedback, heatmaps=given.heatmaps, stages=given.stages)
        given.work.mkdir(parents=True, exist_ok=True)
        file = given.work / f"{given.out.stem}.pt"
        training = Training(settings, recipe, body, Poses.of(learn), Poses.of(watch), file)
        print(f"{sum(p.numel() for p in training.network.parameters()):,} parameters")
        print(save_network(training.run(), given.out))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
