"""What can be typed: the parsers of the command line.

argparse instead of tyro: errors are one line each, `--box` takes one group of four numbers or several, and photos may
stand before or behind the options.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias

People: TypeAlias = Literal["all", "largest"] | int

_EPILOG = """\
examples:
  fitkit fit photo.jpg
  fitkit fit a.jpg b.jpg --people largest --out fits
  fitkit fit photo.jpg --box 40 30 200 480 --box 260 25 190 470
  fitkit fit photo.jpg --keypoints openpose.json --intrinsics 1450 1450 960 540
  fitkit fit photo.jpg --body SMPLX_NEUTRAL.npz --device cuda

exit status: 0 done; 1 nobody found, a person failed or a photo could not be read; 2 wrong use; 130 interrupted.
FITKIT_TRACEBACK=1 shows where an error comes from.
"""
_COMMANDS = """\
commands:
  fit PHOTO...  fit the people in photos; see `fitkit fit --help`
  doctor        what is installed, what works, and what to do about the rest
"""


class UsageError(Exception):
    """Wrong use: a mistake in what was typed, not in a photo."""


class Parser(argparse.ArgumentParser):
    """argparse with errors as exceptions, a guess at what was meant, and photos anywhere on the line."""

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError that names the option, and the nearest one where it is unknown."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in re.findall(r"(?<!\S)--[\w-]+", message) if "unrecognized" in message else ():
            near = difflib.get_close_matches(word, known, 1)
            message += f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(f"{message}; see {self.prog} --help")


def parse(command: str, arguments: list[str]) -> argparse.Namespace:
    """The options of `fit` or `doctor`.

    Raises:
        UsageError: an option or value that is not known.
        SystemExit: after `--help`.
    """
    if command == "doctor":
        return _doctor_parser().parse_args(arguments)
    # Everything behind a bare -- is a photo, even a name like -x.png; argparse loses that when it intermixes.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _fit_parser()
    options = parser.parse_intermixed_args(_several_boxes(arguments[:end]))
    options.photos += arguments[end + 1 :]
    if not options.photos:
        parser.error("expected at least one PHOTO")
    return options


def parse_without_command(arguments: list[str]) -> NoReturn:
    """Answer a line that starts with no command: `--help`, `--version`, or something unknown.

    Raises:
        SystemExit: after `--help` and `--version`.
        UsageError: always otherwise.
    """
    from fitkit._version import __version__

    parser = Parser(
        "fitkit",
        description="Fit a parametric 3D human body to the people in a photo.",
        epilog=_COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="fitkit [-h] [--version] {fit,doctor} ...",
    )
    parser.add_argument("--version", action="version", version=f"fitkit {__version__}")
    _, rest = parser.parse_known_args(arguments)
    if not rest:
        parser.error("no command was given, expected fit or doctor")
    if rest[0].startswith("-"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    meant = f"; did you mean: fitkit fit {rest[0]}" if Path(rest[0]).is_file() else ""
    raise UsageError(f"unknown command {rest[0]!r}, expected fit or doctor{meant}")


def _doctor_parser() -> Parser:
    parser = Parser(
        "fitkit doctor",
        description="Say what is installed, what works, and what to do about the rest.",
        epilog="exit status: 0 when people in photos can be fitted, 1 otherwise.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def _fit_parser() -> Parser:
    from fitkit.keypoints import set_names
    from fitkit.registry import solver_names

    parser = Parser(
        "fitkit fit",
        description="Fit 3D bodies to the people in photos; writes pictures, meshes, parameters and a report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="fitkit fit PHOTO [PHOTO ...] [options]",
    )
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="JPEG, PNG, WebP, TIFF ...")

    def add(name: str, text: str, metavar: str | tuple[str, ...], **options: object) -> None:
        parser.add_argument(name, help=text, metavar=metavar, **options)  # type: ignore[arg-type]

    out = "folder for the files, made if missing; each of several photos gets its own in it (default: %(default)s)"
    add("--out", out, "DIR", default="fitkit-out")
    add(
        "--solver",
        f"{', '.join(solver_names())}, or a chain such as lm+lbfgs (default: %(default)s)",
        "NAME",
        default="lm",
    )
    who = "all, largest, or the number of one person, largest first from 0 (default: %(default)s)"
    add("--people", who, "WHO", default="all", type=_people)
    box = "a person to look at, corner and size in pixels, instead of searching the photo; repeatable"
    add("--box", box, ("X", "Y", "W", "H"), nargs=4, type=_number, action="append")
    file = "keypoints of another detector: OpenPose or COCO JSON, .npy, .npz; for several photos a COCO file"
    add("--keypoints", file, "FILE")
    add("--keypoint-set", f"of a plain array: {', '.join(set_names())}", "NAME", choices=set_names())
    focal = "focal length in pixels (default: the camera's note in the file, else the photo's longer side)"
    add("--focal", focal, "PIXELS", type=_number)
    add("--intrinsics", "calibrated camera, pixels", ("FX", "FY", "CX", "CY"), nargs=4, type=_number)
    add("--body", "your file of SMPL, SMPL+H or SMPL-X (default: the embedded open body)", "FILE")
    jumps = "try every limb the other way in depth as well: one and a half to three times the time"
    parser.add_argument("--jumps", help=jumps, action="store_true")
    add("--device", "cpu, cuda or cuda:N (default: %(default)s)", "NAME", default="cpu")
    return parser


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


_number.__name__ = "number"  # in argparse's messages


def _people(text: str) -> People:
    if text == "all":
        return "all"
    if text == "largest":
        return "largest"
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected all, largest, or a number from 0 on")
    return int(text)


def _several_boxes(arguments: list[str]) -> list[str]:
    """`--box` before each group of four numbers that follows another: argparse takes groups of one size only."""
    result: list[str] = []
    numbers = -1  # since the last --box; -1 outside of one
    for position, word in enumerate(arguments):
        if word == "--box":
            numbers = 0
        elif numbers >= 0 and _is_number(word):
            if numbers == 4:
                group = arguments[position : position + 4]
                if len(group) < 4 or not all(_is_number(other) for other in group):
                    raise UsageError(
                        f"--box: {word!r} follows four numbers, expected groups of four: X Y W H"
                    )
                result.append("--box")
                numbers = 0
            numbers += 1
        else:
            numbers = -1
        result.append(word)
    return result


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", word) is not None
