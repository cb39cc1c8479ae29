"""Solvers by name: ours, those of installed packages (entry points), and those registered in a program."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import TypeVar

from fitkit.solver import Chain, Solver

S = TypeVar("S", bound=type[Solver])

# Written down here too, so that they are found in a checkout that is not installed.
_OURS = {
    "lm": "fitkit.solvers.lm:LM",
    "lbfgs": "fitkit.solvers.lbfgs:LBFGS",
    "bfgs": "fitkit.solvers.bfgs:BFGS",
    "adam": "fitkit.solvers.adam:Adam",
    "hund": "fitkit.solvers.hund:HUND",
    "scipy-bfgs": "fitkit.solvers.scipy:ScipyBFGS",
    "scipy-lbfgsb": "fitkit.solvers.scipy:ScipyLBFGSB",
    "scipy-least-squares": "fitkit.solvers.scipy:ScipyLeastSquares",
    "theseus-lm": "fitkit.solvers.theseus:TheseusLM",
}
_registered: dict[str, Callable[[], Solver]] = {}


def register_solver(name: str) -> Callable[[S], S]:
    """Class decorator: make a solver known by name in this program.

    An installed package says the same with an entry point of the group `fitkit.solvers`.

    Raises:
        ValueError: the name is taken.
    """
    if "+" in name:
        raise ValueError(f"a solver named {name!r}: + joins the solvers of a chain")
    if name in _OURS or name in _registered:
        raise ValueError(f"a solver named {name!r} exists already")

    def register(solver: S) -> S:
        _registered[name] = solver
        return solver

    return register


def solver_names() -> list[str]:
    """Names that `get_solver` knows."""
    installed = {point.name for point in entry_points(group="fitkit.solvers")}
    return sorted({*_OURS, *_registered, *installed})


def chain(*solvers: str | Solver | Chain) -> Chain:
    """Solvers one after another, each from where the last one stopped: `chain("lm", LBFGS(50))`.

    Raises:
        ValueError: an unknown name, or what is no solver.
    """
    members: list[Solver] = []
    for each in solvers:
        if isinstance(each, str):
            members += [_one(name) for name in each.split("+")]
        else:
            members += each.solvers if isinstance(each, Chain) else [each]
    return Chain(tuple(members))


def get_solver(name: str) -> Solver | Chain:
    """A solver with its default settings, or a chain of them: `"lm"`, `"lm+lbfgs"`.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    return chain(name) if "+" in name else _one(name)


def _one(name: str) -> Solver:
    if name in _registered:
        return _registered[name]()
    if name in _OURS:
        module, attribute = _OURS[name].split(":")
        made: Solver = getattr(import_module(module), attribute)()
        return made
    for point in entry_points(group="fitkit.solvers"):
        if point.name == name:
            loaded: Solver = point.load()()
            return loaded
    raise ValueError(f"unknown solver {name!r}, expected one of {solver_names()}")
