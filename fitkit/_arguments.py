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
  fit PHOTO...           fit the people in photos; see `fitkit fit --help`
  stages PHOTO           draw every stage of a solver over a photo; see `fitkit stages --help`
  texture PHOTO TEXTURE  put a texture on the people of a photo; see `fitkit texture --help`
  doctor                 what is installed, what works, and what to do about the rest
"""
_ATLAS = """\
The texture is a picture of four columns and six rows of square tiles (800 x 1200 pixels, or any size of that form), a
tile for each of DensePose's 24 charts; --template writes one to draw on. What is transparent in it shows the photo.

examples:
  fitkit texture --template suit.png
  fitkit texture photo.jpg suit.png --out dressed.png --people largest

exit status: 0 done; 1 nobody found, a person failed or the photo could not be read; 2 wrong use; 130 interrupted.
"""
_STAGES = """\
A row of the picture shows one person: the photo, the start, every step (of many those that lie evenly on a logarithmic
scale) with its energy, and the last body from the side and from above on squares of 0.5 m.

examples:
  fitkit stages photo.jpg
  fitkit stages photo.jpg --solver lm --people largest --steps 10 --out lm.png

exit status: 0 done; 1 nobody found, a person failed or the photo could not be read; 2 wrong use; 130 interrupted.
"""
COMMANDS = ("fit", "stages", "texture", "doctor")


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
    """The options of a command, one of `COMMANDS`.

    Raises:
        UsageError: an option or value that is not known.
        SystemExit: after `--help`.
    """
    if command == "doctor":
        return _doctor_parser().parse_args(arguments)
    if command == "texture":
        return _parse_texture(arguments)
    if command == "stages":
        return _parse_stages(arguments)
    parser = _fit_parser()
    options = _parse_anywhere(parser, "photos", arguments)
    if not options.photos:
        parser.error("expected at least one PHOTO")
    return options


def _parse_texture(arguments: list[str]) -> argparse.Namespace:
    parser = _texture_parser()
    options = _parse_anywhere(parser, "files", arguments)
    if options.template is not None:
        others = {name: value for name, value in vars(options).items() if name not in ("template", "files")}
        if options.files or any(value != parser.get_default(name) for name, value in others.items()):
            parser.error("--template FILE was given with more, expected it alone")
        return options
    if len(options.files) != 2:
        given = " ".join(options.files) or "no file"
        parser.error(f"{given} was given, expected PHOTO TEXTURE, or --template FILE")
    options.photos, options.texture = options.files[:1], options.files[1]
    if not 0 <= options.opacity <= 1:
        parser.error(f"--opacity {options.opacity:g}: expected 0 to 1")
    return options


def _parse_stages(arguments: list[str]) -> argparse.Namespace:
    parser = _stages_parser()
    options = _parse_anywhere(parser, "photos", arguments)
    if len(options.photos) != 1:
        parser.error(f"{' '.join(options.photos) or 'no file'} was given, expected one PHOTO")
    return options


def _parse_anywhere(parser: Parser, files: str, arguments: list[str]) -> argparse.Namespace:
    """Files before and behind the options; everything behind a bare -- is a file, even a name like -x.png."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_intermixed_args(_several_boxes(arguments[:end]))
    getattr(options, files).extend(arguments[end + 1 :])  # argparse loses them when it intermixes
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
        usage="fitkit [-h] [--version] {fit,stages,texture,doctor} ...",
    )
    parser.add_argument("--version", action="version", version=f"fitkit {__version__}")
    _, rest = parser.parse_known_args(arguments)
    if not rest:
        parser.error("no command was given, expected fit, stages, texture or doctor")
    if rest[0].startswith("-"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    meant = f"; did you mean: fitkit fit {rest[0]}" if Path(rest[0]).is_file() else ""
    raise UsageError(f"unknown command {rest[0]!r}, expected fit, stages, texture or doctor{meant}")


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
    parser = Parser(
        "fitkit fit",
        description="Fit 3D bodies to the people in photos; writes pictures, meshes, parameters and a report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="fitkit fit PHOTO [PHOTO ...] [options]",
    )
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="JPEG, PNG, WebP, TIFF ...")
    out = "folder for the files, made if missing; each of several photos gets its own in it (default: %(default)s)"
    parser.add_argument("--out", help=out, metavar="DIR", default="fitkit-out")
    _add_fitting(parser)
    _add_body(parser)
    jumps = "try every limb the other way in depth as well: one and a half to three times the time"
    parser.add_argument("--jumps", help=jumps, action="store_true")
    parser.add_argument(
        "--stages", help="draw every stage of the solver too (stages.png)", action="store_true"
    )
    return parser


def _stages_parser() -> Parser:
    parser = Parser(
        "fitkit stages",
        description="Fit the people in a photo, and draw the bodies at every stage of the solver.",
        epilog=_STAGES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="fitkit stages PHOTO [options]",
    )
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="JPEG, PNG, WebP, TIFF ...")
    out = "the picture, a PNG file (default: %(default)s)"
    parser.add_argument("--out", help=out, metavar="FILE", default="fitkit-stages.png")
    rows = "people to draw at most, largest first (default: %(default)s)"
    parser.add_argument("--rows", help=rows, metavar="COUNT", type=_count, default=6)
    steps = "steps to draw at most, beside the start (default: %(default)s)"
    parser.add_argument("--steps", help=steps, metavar="COUNT", type=_count, default=6)
    _add_fitting(parser)
    _add_body(parser)
    parser.set_defaults(solver="hund", stages=True, jumps=False)
    return parser


def _texture_parser() -> Parser:
    parser = Parser(
        "fitkit texture",
        description="Fit the people in a photo, and put a texture on them.",
        epilog=_ATLAS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="fitkit texture PHOTO TEXTURE [options]\n       fitkit texture --template FILE",
    )
    files = "the photo (JPEG, PNG, WebP, TIFF ...), and the texture (likewise)"
    parser.add_argument("files", nargs="*", metavar="PHOTO TEXTURE", help=files)
    parser.add_argument("--template", help="write a texture to draw on to this PNG file", metavar="FILE")
    out = "the picture, a PNG file (default: %(default)s)"
    parser.add_argument("--out", help=out, metavar="FILE", default="fitkit-texture.png")
    opacity = "of the texture, 0 to 1 (default: %(default)g)"
    parser.add_argument("--opacity", help=opacity, metavar="PART", type=_number, default=1.0)
    shade = "keep the texture's own colours, without the light and shadow of the photo"
    parser.add_argument("--no-shade", help=shade, action="store_true")
    _add_fitting(parser)
    parser.set_defaults(body=None, jumps=False, stages=False)
    return parser


def _add_fitting(parser: Parser) -> None:
    """The options that say whom to fit, to what, with what."""
    from fitkit.keypoints import set_names
    from fitkit.registry import solver_names

    def add(name: str, text: str, metavar: str | tuple[str, ...], **options: object) -> None:
        parser.add_argument(name, help=text, metavar=metavar, **options)  # type: ignore[arg-type]

    solver = f"{', '.join(solver_names())}, or a chain such as lm+lbfgs (default: %(default)s)"
    add("--solver", solver, "NAME", default="lm")
    silhouette = (
        "fill the detector's mask of each person as well: nearer to the photo, about ten times the time"
    )
    parser.add_argument("--silhouette", help=silhouette, action="store_true")
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
    add("--device", "cpu, cuda or cuda:N (default: %(default)s)", "NAME", default="cpu")


def _add_body(parser: Parser) -> None:
    """The options of commands that take any body."""
    body = "your file of SMPL, SMPL+H or SMPL-X (default: the embedded open body)"
    parser.add_argument("--body", help=body, metavar="FILE")


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from 1 to 9999")
    return int(text)


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
