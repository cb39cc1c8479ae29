"""Folders of motion capture as one motion: BVH, AMASS, DeepMimic; what cannot be read is named and left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fitkit.datasets.amass import read_amass
from fitkit.datasets.arrays import read_arrays
from fitkit.datasets.bvh import read_bvh
from fitkit.datasets.cmu import TRIAL, repair_cmu
from fitkit.datasets.deepmimic import read_deepmimic, read_deepmimic_arrays
from fitkit.datasets.motion import Motion
from fitkit.datasets.retarget import retarget

SUFFIXES = (".bvh", ".npz", ".json")


@dataclass(frozen=True)
class Conversion:
    """What came of some folders.

    Attributes:
        motion: everything that could be read.
        skipped: what could not, or was there already, with the reason.
    """

    motion: Motion
    skipped: tuple[tuple[str, str], ...]


def subject_of(path: Path) -> str:
    """CMU's subject in three digits where the name is that of a trial, such as `05_01`; else the folder's name."""
    trial = TRIAL.match(path.stem)
    return f"{int(trial[1]):03d}" if trial else path.resolve().parent.name


def _amass_subject(path: Path) -> str:
    """The folder's name; where it is the number of a CMU trial's subject, as for BVH, so that nobody counts twice."""
    folder, trial = path.resolve().parent.name, subject_of(path)
    return trial if folder.isdigit() and trial.isdigit() and int(folder) == int(trial) else folder


def read_motion(path: str | Path) -> Motion:
    """One file of motion; what it is is told by its ending and its arrays.

    BVH is repaired where it has CMU's known defects (`cmu.repair_cmu`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: none of the kinds of file that are read, or damaged; the message names the file.
    """
    path = Path(path)
    if path.suffix.lower() == ".bvh":
        return retarget(repair_cmu(read_bvh(path)), subject_of(path))
    if path.suffix.lower() == ".json":
        return read_deepmimic(path, subject_of(path))
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path}: expected a file of {', '.join(SUFFIXES)}")
    names = read_arrays(path, only=("axis_angle", "clips", "poses", "root_orient")).keys()
    if {"axis_angle", "clips"} <= names:
        return Motion.load(path)
    if names & {"poses", "root_orient"}:
        return read_amass(path, _amass_subject(path))
    return read_deepmimic_arrays(path)


def read_folders(paths: Iterable[str | Path], fps: float | None = None) -> Conversion:
    """All motion in some folders and below them, and in single files, in the order of their names.

    A clip whose name and subject came before is left out: the same trial in two forms would count twice.

    Args:
        paths: folders or files.
        fps: resample everything to this by dropping frames; None keeps each clip's own rate.

    Raises:
        FileNotFoundError: a path is not there.
        ValueError: nothing could be read; the message gives the first reasons.
    """
    motions: list[Motion] = []
    skipped: list[tuple[str, str]] = []
    seen: set[tuple[str, str]] = set()
    for file in _files(paths):
        try:
            motion = read_motion(file)
            if fps is not None:
                motion = motion.every(fps)
        except (ValueError, OSError) as error:
            skipped.append((str(file), str(error)))
            continue
        clips = list(zip(motion.subjects, motion.clips, strict=True))
        again = [index for index, clip in enumerate(clips) if clip in seen]
        skipped += [(f"{file}: {clips[index][1]}", "read already from another file") for index in again]
        seen.update(clips)
        motions.append(motion.of_clips(index for index in range(len(clips)) if index not in again))
    if not motions:
        reasons = "; ".join(reason for _, reason in skipped[:3]) or f"no files of {', '.join(SUFFIXES)}"
        raise ValueError(f"no motion in {', '.join(str(path) for path in paths)}: {reasons}")
    return Conversion(Motion.join(motions), tuple(skipped))


def _files(paths: Iterable[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no folder or file {path}")
        if path.is_dir():
            found += sorted(
                file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
            )
        else:
            found.append(path)
    return found
