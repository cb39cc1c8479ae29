"""Alternatives: where the starts that lost ended, and how clear the decision between them was."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        energy: `(B, K)` by the full objective, infinite where there was none.
    """

    states: tuple[State, ...]
    energy: Float[Tensor, "B K"]

    def select(self, rows: Tensor) -> Alternatives:
        """Those of some of the people."""
        rows = rows.to(self.energy.device)
        return replace(
            self, states=tuple(state.select(rows) for state in self.states), energy=self.energy[rows]
        )

    def runner_up(
        self, body: BodyModel, best: State, energy: Float[Tensor, " B"]
    ) -> tuple[State, Float[Tensor, " B"]]:
        """The best answer that is another pose, and how much higher its energy is.

        An energy is a negative log-likelihood, so the odds of the two are `exp(-margin)`: below 1 a toss-up, above
        5 clear. A start that was dropped early was not finished, so its margin is too large rather than too small.

        Args:
            body: of the states.
            best: of each person.
            energy: of the best.

        Returns:
            A state per person and the margins; where no other pose was found, the best itself and infinity.
        """
        other, margin = best, torch.full_like(energy, torch.inf)
        mine = _around_root(body, best)
        for place, state in enumerate(self.states):
            away = (_around_root(body, state) - mine).norm(dim=-1).mean(1)
            above = torch.where(away > DISTINCT, self.energy[:, place] - energy, torch.inf)
            nearer = above < margin
            other, margin = choose(nearer, state, other), torch.where(nearer, above, margin)
        return other, margin


def _around_root(body: BodyModel, state: State) -> Tensor:
    joints = body.joints(state)
    return joints - joints[:, :1]
