"""Alternatives: where the starts that lost ended, and how clear the decision between them was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fitkit._select import choose
from fitkit.body.model import BodyModel
from fitkit.state import State

# Mean distance of the joints, metres and root to root, from which on two bodies are two answers and not one.
DISTINCT = 0.05


@dataclass(frozen=True)
class Alternatives:
    """Other ends of the search for each of B people.

    Attributes:
        states: K batches of B; one that was dropped early stands where it was then.
        score: `(B, K)` what the choice went by: energy by the full objective, or what the last stage ranked by.
        best: `(B,)` that of the winner.
    """

    states: tuple[State, ...]
    score: Float[Tensor, "B K"]
    best: Float[Tensor, " B"]

    def select(self, rows: Tensor) -> Alternatives:
        """Those of some of the people."""
        rows = rows.to(self.score.device)
        states = tuple(state.select(rows) for state in self.states)
        return Alternatives(states, self.score[rows], self.best[rows])

    def runner_up(self, body: BodyModel, best: State) -> tuple[State, Float[Tensor, " B"]]:
        """The best answer that is another pose, and how far it is above the winner.

        A score is a negative log-likelihood, so the odds of the two are `exp(-margin)`: below 1 a toss-up, above 5
        clear. A start that was dropped early was not finished, so its margin is too large rather than too small.

        Args:
            body: of the states.
            best: of each person.

        Returns:
            A state per person and the margins; where no other pose was found, the best itself and infinity.
        """
        other, margin = best, torch.full_like(self.best, torch.inf)
        mine = _around_root(body, best)
        for place, state in enumerate(self.states):
            away = (_around_root(body, state) - mine).norm(dim=-1).mean(1)
            above = torch.where(away > DISTINCT, self.score[:, place] - self.best, torch.inf)
            nearer = above < margin
            other, margin = choose(nearer, state, other), torch.where(nearer, above, margin)
        return other, margin


def _around_root(body: BodyModel, state: State) -> Tensor:
    joints = body.joints(state)
    return joints - joints[:, :1]
