"""The command line: `fitkit fit PHOTO...`, `stages PHOTO`, `texture PHOTO TEXTURE` and `doctor`."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fitkit._arguments import COMMANDS, People, UsageError, parse, parse_without_command
from fitkit._summary import complain, progress, say, stdout, summarise

if TYPE_CHECKING:
    from fitkit.body import BodyModel
    from fitkit.camera import Camera
    from fitkit.keypoints import Keypoints
    from fitkit.observe import Photo
    from fitkit.result import FitResult
    from fitkit.solver import Chain, Solver

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


class _Failure(Exception):
    """Any error of a photo in words, for one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process otherwise.

    Returns:
        Exit status: 0 done; 1 nobody found, or a person or photo failed; 2 wrong use; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in COMMANDS:
            return _RUN[arguments[0]](parse(arguments[0], arguments[1:]))
        parse_without_command(arguments)
    except SystemExit as leaving:  # argparse, after --help and --version
        return leaving.code if isinstance(leaving.code, int) else DONE
    except UsageError as error:
        complain(error)
        return WRONG_USE
    except KeyboardInterrupt:
        print("fitkit: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `fitkit doctor | head`
        _close_stdout()
        return FAILED
    except Exception as error:  # whatever is wrong, a user gets one line
        complain(_in_words(error))
        return FAILED


def run_doctor(options: argparse.Namespace) -> int:
    """`fitkit doctor`."""
    from fitkit.doctor import as_json, examine, healthy, print_table

    findings = examine()
    if options.json:
        import json

        print(json.dumps(as_json(findings), indent=1))
    else:
        print_table(findings, stdout())
    return DONE if healthy(findings) else FAILED


def fit_photos(options: argparse.Namespace) -> int:
    """`fitkit fit`: photo by photo, so that a broken one costs nothing but itself."""
    job = _prepare(options)
    if job.device == "cpu":
        _use_one_thread()
    out = Path(options.out)
    made = not out.exists()
    _check_output(out)
    folders = _folders(out, options.photos)
    codes: list[int] = []
    try:
        for number, (path, folder) in enumerate(zip(options.photos, folders, strict=True), 1):
            place = f"{number}/{len(folders)} " if job.several else ""
            codes.append(_fit_one(job, path, folder, f"{place}{Path(path).name}"))
    except KeyboardInterrupt:
        done = f"{len(codes)} of {len(folders)} photos done, files in {out}"
        print(f"fitkit: interrupted; {done}", file=sys.stderr)
        return INTERRUPTED
    finally:
        if made:
            with contextlib.suppress(OSError):  # removed only where nothing came of it
                out.rmdir()
    if job.several:
        failed = len(codes) - codes.count(DONE)
        say(f"{len(codes)} photos, {codes.count(DONE)} done, {failed} with errors; files in {out}")
    return max(codes)


def texture_photo(options: argparse.Namespace) -> int:
    """`fitkit texture`."""
    from fitkit.body import open_body
    from fitkit.body.charts import Charts
    from fitkit.files import atomic_write
    from fitkit.show.texture import atlas_template, paint_texture

    out = Path(options.out if options.template is None else options.template)
    _check_picture("--out" if options.template is None else "--template", out)
    if options.template is not None:
        atomic_write(out, _png(atlas_template(open_body())))
        say(f"{out}: draw on it, then: fitkit texture PHOTO {out}")
        return DONE
    job, atlas = _prepare(options), _read_texture(options.texture)

    def draw(photo: Photo, result: FitResult) -> np.ndarray:
        bodies, camera = result[result.ok], result.observation.camera
        surface, charts = bodies.vertices().cpu(), Charts.of(result.body)
        return paint_texture(
            photo.pixels,
            *(surface, charts, camera.focal.cpu(), camera.center.cpu(), atlas),
            opacity=options.opacity,
            shade=not options.no_shade,
        )

    return _draw_one(
        job, options.photos[0], out, draw, lambda people: f"{_people(people)} in {options.texture}"
    )


def draw_photo_stages(options: argparse.Namespace) -> int:
    """`fitkit stages`."""
    from fitkit.show.stages import draw_stages

    out = Path(options.out)
    _check_picture("--out", out)
    job = _prepare(options)

    def draw(photo: Photo, result: FitResult) -> np.ndarray:
        return draw_stages(result, people=options.rows, steps=options.steps)

    def words(people: int) -> str:
        shown = f", the first {options.rows} of them drawn" if people > options.rows else ""
        return f"{_people(people)}{shown}, solver {job.solver.name}"

    return _draw_one(job, options.photos[0], out, draw, words)


def _draw_one(
    job: _Job,
    path: str,
    out: Path,
    draw: Callable[[Photo, FitResult], np.ndarray],
    words: Callable[[int], str],
) -> int:
    """Fit one photo and write a picture of whoever could be fitted; returns the exit status."""
    from fitkit.files import atomic_write
    from fitkit.observe import load_image

    began = time.perf_counter()
    if job.device == "cpu":
        _use_one_thread()
    try:
        with progress(Path(path).name) as on_step:
            photo = load_image(path)
            result = job.fit(path, photo, on_step)
            people = int(result.ok.sum())
            if people:
                on_step(0, "drawing")
                atomic_write(out, _png(draw(photo, result)))
    except UsageError:
        raise
    except Exception as error:
        complain(_in_words(error, path))
        return FAILED
    if people:
        say(f"{path}: {words(people)}, {time.perf_counter() - began:.1f} s; {out}")
    return _judge(path, result, job)


@dataclass(frozen=True)
class _Job:
    """What holds for all photos, checked before the first is read."""

    solver: Solver | Chain
    jumps: bool
    states: bool
    silhouette: bool
    body: BodyModel | None
    people: People
    boxes: np.ndarray | None
    keypoints: str | None
    keypoint_set: str | None
    focal: float | None
    intrinsics: tuple[float, float, float, float] | None
    device: str
    several: bool

    def fit(self, path: str, photo: Photo, on_step: Callable[[int, str], None]) -> FitResult:
        """The people of a photo."""
        from fitkit.api import default_objective, fit
        from fitkit.objectives import Silhouette

        return fit(
            photo,
            solver=self.solver,
            objective=default_objective() + Silhouette() if self.silhouette else None,
            jumps=self.jumps,
            body=self.body,
            people=self.people,
            boxes=self.boxes_in(photo),
            keypoints=self.keypoints_of(path),
            camera=self.camera(photo),
            device=self.device,
            on_step=on_step,
            states=self.states,
        )

    def camera(self, photo: Photo) -> Camera | None:
        """The camera that the options describe, for a photo of this size."""
        from fitkit.camera import Camera

        try:
            if self.intrinsics is not None:
                fx, fy, cx, cy = self.intrinsics
                return Camera.from_intrinsics(fx, fy, cx, cy, photo.width, photo.height)
            return None if self.focal is None else Camera.from_size(photo.width, photo.height, self.focal)
        except ValueError as error:
            raise UsageError(f"{photo.source}: {error}") from error

    def boxes_in(self, photo: Photo) -> np.ndarray | None:
        """The boxes, each known to touch the photo."""
        for x, y, w, h in () if self.boxes is None else self.boxes:
            if not (x < photo.width and y < photo.height and x + w > 0 and y + h > 0):
                raise UsageError(
                    f"--box {x:g} {y:g} {w:g} {h:g} lies outside of {photo.source}, "
                    f"a photo of {photo.width} x {photo.height} pixels"
                )
        return self.boxes

    def keypoints_of(self, path: str) -> Keypoints | None:
        """The given keypoints of a photo."""
        from fitkit.observe import keypoints_from_file, read_coco

        if self.keypoints is None:
            return None
        name = Path(path).name
        try:
            if self.several:
                return read_coco(self.keypoints, name)
            try:
                return keypoints_from_file(self.keypoints, self.keypoint_set)
            except ValueError:  # a file of several photos: which of them is this?
                return keypoints_from_file(self.keypoints, self.keypoint_set, name)
        except (OSError, ValueError) as error:
            which = "--keypoints, for several photos" if self.several else "--keypoints"
            raise UsageError(f"{which}: {error}") from error


def _prepare(options: argparse.Namespace) -> _Job:
    from fitkit.registry import get_solver

    if options.focal is not None and options.intrinsics is not None:
        raise UsageError("--focal and --intrinsics were both given, expected one of them")
    if options.focal is not None and options.focal <= 0:
        raise UsageError(f"--focal {options.focal:g}: expected pixels, more than 0")
    if options.box and options.keypoints:
        raise UsageError(
            "--box and --keypoints were both given: boxes are for searching, keypoints replace it"
        )
    if options.silhouette and options.keypoints:
        raise UsageError("--silhouette and --keypoints were both given: who brings keypoints has no mask")
    if options.keypoint_set and not options.keypoints:
        raise UsageError("--keypoint-set was given without --keypoints FILE")
    for _, _, w, h in options.box or ():
        if w < 1 or h < 1:
            raise UsageError(f"--box of {w:g} x {h:g} pixels, expected X Y W H with a size of at least 1 x 1")
    if options.keypoints and not Path(options.keypoints).is_file():
        raise UsageError(f"--keypoints {options.keypoints}: no such file")
    try:
        solver = get_solver(options.solver)
    except (ImportError, ValueError) as error:
        raise UsageError(f"--solver: {error}") from error
    return _Job(
        solver=solver,
        jumps=options.jumps,
        states=options.stages,
        silhouette=options.silhouette,
        body=_read_body(options.body),
        people=options.people,
        boxes=np.array(options.box, np.float64) if options.box else None,
        keypoints=options.keypoints,
        keypoint_set=options.keypoint_set,
        focal=options.focal,
        intrinsics=None if options.intrinsics is None else tuple(options.intrinsics),
        device=_check_device(options.device),
        several=len(options.photos) > 1,
    )


def _read_body(path: str | None) -> BodyModel | None:
    if path is None:
        return None
    from fitkit.body import BodyModel
    from fitkit.body.smpl import read_smpl

    try:
        return BodyModel(read_smpl(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"--body: {error}") from error


def _check_device(name: str) -> str:
    import torch

    if re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name) is None:
        raise UsageError(f"--device {name}: expected cpu, cuda or cuda:N")
    if name == "cpu":
        return name
    if not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch {torch.__version__} sees no CUDA device; see fitkit doctor")
    count = torch.cuda.device_count()
    if int(name.partition(":")[2] or 0) >= count:
        raise UsageError(f"--device {name}: torch sees {count} CUDA devices, numbered from 0")
    return name


def _use_one_thread() -> None:
    """The tensors of a few people are too small to share: measured, two threads take up to 100 times as long.

    Only here, in a program of our own, and only where the user has not said otherwise.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _check_picture(option: str, out: Path) -> None:
    """A file that can be written, with the suffix of what will be in it."""
    if out.suffix.lower() != ".png":
        raise UsageError(f"{option} {out}: expected a name that ends in .png")
    if out.is_dir():
        raise UsageError(f"{option}: {out} is a folder, expected a file")
    if not out.parent.is_dir():
        raise UsageError(f"{option} {out}: no folder {out.parent}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {out}: folder {out.parent} cannot be written to")


def _read_texture(path: str) -> np.ndarray:
    """The picture with its transparency, known to be an atlas."""
    from PIL import Image

    from fitkit.show.texture import tiles

    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # Pillow would clip them
                raise ValueError(f"pixels of kind {image.mode}, expected 8 bits a channel")
            atlas = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        tiles(atlas)
    except ValueError as error:
        raise UsageError(f"texture {path}: {error}") from error
    except Exception as error:  # of a damaged file: OSError, SyntaxError, struct.error, zlib.error ...
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"texture {path} cannot be read: {reason}") from error
    return atlas


def _png(picture: np.ndarray) -> bytes:
    from io import BytesIO

    from PIL import Image

    content = BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return content.getvalue()


def _check_output(out: Path) -> None:
    from fitkit.files import output_folder

    try:
        output_folder(out)
    except OSError as error:
        raise UsageError(f"--out: {error}") from error


def _folders(out: Path, photos: Sequence[str]) -> list[Path]:
    """Where each photo's files go: one photo's straight into `out`, several into folders of their own names."""
    if len(photos) == 1:
        return [out]
    taken: set[str] = set()
    folders = []
    for photo in photos:
        stem = Path(photo).stem
        stem = "photo" if stem in ("", ".", "..") else stem
        names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(photos) + 1))
        # Some file systems do not tell A from a.
        name = next(name for name in names if name.casefold() not in taken)
        taken.add(name.casefold())
        folders.append(out / name)
    return folders


def _fit_one(job: _Job, path: str, folder: Path, label: str) -> int:
    """Fit, save and report one photo; returns its exit status."""
    from fitkit.observe import load_image

    began = time.perf_counter()
    try:
        with progress(label) as on_step:
            result = job.fit(path, load_image(path), on_step)
            on_step(0, "saving")
            result.save(folder)
    except UsageError as error:
        complain(error)
        return WRONG_USE
    except Exception as error:  # of one photo: the others are none the worse for it
        complain(_in_words(error, path))
        return FAILED
    summarise(path, result, folder, time.perf_counter() - began)
    return _judge(path, result, job)


def _judge(path: str, result: FitResult, job: _Job) -> int:
    """The exit status of one photo's fit; complains about whoever failed, or about nobody."""
    failed = [f"person {i}: {status.message}" for i, status in enumerate(result.status) if status.failed]
    if failed:
        complain(f"{path}: {'; '.join(failed)}")
    if len(result) == 0:
        complain(
            f"{path}: nobody found"
            + (
                ""
                if job.keypoints
                else "; try --box X Y W H to say where, or --keypoints FILE of another detector"
            )
        )
    return FAILED if failed or len(result) == 0 else DONE


def _in_words(error: Exception, path: str = "") -> Exception:
    """An error whose text stands alone: with the photo's name, and with the kind of what nobody foresaw."""
    foreseen = isinstance(error, OSError | ValueError | ImportError) and str(error) != ""
    text = str(error) if foreseen else f"{type(error).__name__}: {error}"
    named = _Failure(text if path in text else f"{path}: {text}")
    named.__cause__ = error
    return named


def _people(count: int) -> str:
    return f"{count} {'person' if count == 1 else 'people'}"


def _close_stdout() -> None:
    """Nobody reads on: what is still buffered must not fail again when Python exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "fit": fit_photos,
    "stages": draw_photo_stages,
    "texture": texture_photo,
    "doctor": run_doctor,
}
