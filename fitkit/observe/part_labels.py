"""Label vocabularies of human parsing: which of DensePose's 14 parts a label of another program may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from fitkit.body.charts import CHART_PARTS
from fitkit.maps import PART_NAMES

_CHANNELS = ("background", *PART_NAMES)

_GROUPS: dict[str, tuple[str, ...]] = {
    "hands": ("left_hand", "right_hand"),
    "feet": ("left_foot", "right_foot"),
    "upper_arms": ("left_upper_arm", "right_upper_arm"),
    "lower_arms": ("left_lower_arm", "right_lower_arm"),
    "upper_legs": ("left_upper_leg", "right_upper_leg"),
    "lower_legs": ("left_lower_leg", "right_lower_leg"),
    # Bare skin: gloves and shoes have labels of their own, naked hands and feet have not.
    "left_arm": ("left_upper_arm", "left_lower_arm", "left_hand"),
    "right_arm": ("right_upper_arm", "right_lower_arm", "right_hand"),
    "left_leg": ("left_upper_leg", "left_lower_leg", "left_foot"),
    "right_leg": ("right_upper_leg", "right_lower_leg", "right_foot"),
}

# What clothes may cover. "Nothing" is a thing that is no part of anybody: behind it anything may be.
_TOP = "torso upper_arms lower_arms"
_TROUSERS = "torso upper_legs lower_legs"
_GOWN = "torso upper_arms lower_arms upper_legs lower_legs"
_NOTHING = ""

_LIP = {
    "background": "background",
    "hat": "head",
    "hair": "head",
    "glove": "hands",
    "sunglasses": "head",
    "upper-clothes": _TOP,
    "dress": _GOWN,
    "coat": _GOWN,
    "socks": "lower_legs feet",
    "pants": _TROUSERS,
    "jumpsuits": _GOWN,
    "scarf": "head torso",
    "skirt": _TROUSERS,
    "face": "head",
    "left-arm": "left_arm",
    "right-arm": "right_arm",
    "left-leg": "left_leg",
    "right-leg": "right_leg",
    "left-shoe": "left_foot",
    "right-shoe": "right_foot",
}

# CIHP is LIP with one label replaced: torso-skin is the bare neck and chest.
_CIHP = {
    ("torso-skin" if label == "jumpsuits" else label): ("head torso" if label == "jumpsuits" else parts)
    for label, parts in _LIP.items()
}

_ATR = {
    "background": "background",
    "hat": "head",
    "hair": "head",
    "sunglasses": "head",
    "upper-clothes": _GOWN,  # ATR has no label for coats
    "skirt": _TROUSERS,
    "pants": _TROUSERS,
    "dress": _GOWN,
    "belt": "torso",
    "left-shoe": "left_foot",
    "right-shoe": "right_foot",
    "face": "head",
    "left-leg": "left_leg",
    "right-leg": "right_leg",
    "left-arm": "left_arm",
    "right-arm": "right_arm",
    "bag": _NOTHING,
    "scarf": "head torso",
}

# Hands belong to the lower arms there, feet to the lower legs.
_PASCAL = {
    "background": "background",
    "head": "head",
    "torso": "torso",
    "upper-arms": "upper_arms",
    "lower-arms": "lower_arms hands",
    "upper-legs": "upper_legs",
    "lower-legs": "lower_legs feet",
}

_COARSE = {name: name for name in _CHANNELS}

_FINE = {"background": "background"} | {
    f"{PART_NAMES[part - 1]}/{k}": PART_NAMES[part - 1] for k, part in enumerate(CHART_PARTS, 1)
}

_KNOWN: dict[str, dict[str, str]] = {
    "lip": _LIP,
    "cihp": _CIHP,
    "atr": _ATR,
    "pascal-person-part": _PASCAL,
    "densepose14": _COARSE,
    "densepose24": _FINE,
}


@dataclass(frozen=True)
class Vocabulary:
    """The labels of a parsing program, and what each may be.

    Attributes:
        name: of the vocabulary.
        labels: names; label number k is `labels[k]`.
        table: `(K, 15)` which of background (column 0) and the 14 parts of `fitkit.maps.PART_NAMES` label k may be.
            Several parts: one of them, unknown which. None: behind it anything may be.
    """

    name: str
    labels: tuple[str, ...]
    table: Bool[Tensor, "K 15"]

    def __len__(self) -> int:
        return len(self.labels)


def vocabulary_names() -> tuple[str, ...]:
    """Names that `vocabulary` knows."""
    return tuple(_KNOWN)


def vocabulary(of: str | Vocabulary | Mapping[str, object] | Mapping[int, object]) -> Vocabulary:
    """A vocabulary by name, or from a table of your own.

    Known names: "lip" (LIP, 20 labels), "cihp" (CIHP, 20), "atr" (ATR, 18), "pascal-person-part" (7), "densepose14"
    and "densepose24" (DensePose's parts and charts). Left and right are the person's own, as in DensePose: so it is
    in CIHP's annotation, and a network trained on LIP answers so; of ATR there was no annotation to look at.
    Clothes are ambiguous: pants may be torso, thighs or shins of either side.

    Args:
        of: a name; or a mapping from label to the names of the parts it may be, as a text with spaces or a list:
            names of `fitkit.maps.PART_NAMES`, "background", groups ("left_arm", "hands", "upper_legs" ...) or
            nothing. Labels that are numbers may leave gaps, and what falls in one is unknown; labels that are names
            count from 0 in their order.

    Raises:
        ValueError: an unknown name of a vocabulary or part; a label that may be background as well as a part.

    >>> vocabulary("atr").labels[16], bool(vocabulary("atr").table[16].any())
    ('bag', False)
    >>> vocabulary({"background": "background", "person": "torso head left_arm right_arm"}).table.sum(1).tolist()
    [1, 8]
    """
    if isinstance(of, Vocabulary):
        return of
    if isinstance(of, str):
        if of not in _KNOWN:
            raise ValueError(f"unknown vocabulary {of!r}, expected one of {', '.join(_KNOWN)}, or a mapping")
        return _vocabulary(of, list(_KNOWN[of].items()))
    if not isinstance(of, Mapping) or not of:
        raise ValueError(
            f"vocabulary: {of!r}, expected one of {', '.join(_KNOWN)}, or a mapping from labels to parts"
        )
    entries: dict[object, object] = dict(of.items())
    names = [(label, parts) for label, parts in entries.items() if isinstance(label, str)]
    if len(names) == len(entries):
        return _vocabulary("own", names)
    numbers = [label for label in entries if isinstance(label, int) and not isinstance(label, bool)]
    if len(numbers) < len(entries) or min(numbers) < 0 or max(numbers) > 65535:
        raise ValueError(
            f"vocabulary: labels {list(entries)[:8]}, expected names only, or numbers from 0 to 65535 only"
        )
    return _vocabulary("own", [(str(k), entries.get(k)) for k in range(max(numbers) + 1)])


def _vocabulary(name: str, entries: list[tuple[str, object]]) -> Vocabulary:
    table = torch.zeros(len(entries), len(_CHANNELS), dtype=torch.bool)
    for row, (label, parts) in enumerate(entries):
        for part in _parts(parts, label):
            table[row, _CHANNELS.index(part)] = True
        if bool(table[row, 0]) and bool(table[row, 1:].any()):
            raise ValueError(
                f"vocabulary: label {label!r} may be background or a part, expected one of the two; leave it empty"
            )
    return Vocabulary(name, tuple(label for label, _ in entries), table)


def _parts(value: object, label: str) -> list[str]:
    """Names of channels from a text or a list of part names and groups."""
    names = value.split() if isinstance(value, str) else [] if value is None else value
    found: list[str] = []
    for name in names if isinstance(names, Iterable) else [names]:
        parts = _GROUPS.get(name, (name,)) if isinstance(name, str) else ()
        if not parts or parts[0] not in _CHANNELS:
            raise ValueError(
                f"vocabulary: label {label!r} is said to be {name!r}, expected names of "
                f"{', '.join((*_CHANNELS, *_GROUPS))}"
            )
        found.extend(parts)
    return found
