"""`python -m fitkit.datasets FOLDER... --out motion.npz`: motion capture of any kind to one file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fitkit.datasets.folders import Conversion, read_folders
from fitkit.datasets.motion import Motion, split_by_subject


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, print a table of subjects, and say what was left out; 1 if nothing could be read."""
    parser = argparse.ArgumentParser(prog="python -m fitkit.datasets", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders, or files: .bvh, .npz, .json")
    parser.add_argument("--out", required=True, type=Path, help="the .npz to write")
    parser.add_argument("--fps", type=float, help="resample to this by dropping frames")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="SUBJECT", help="to OUT-held-out.npz")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".npz" or not options.out.resolve().parent.is_dir():
        parser.error(f"--out {options.out}: expected a name that ends in .npz, in a folder that exists")
    try:
        conversion = read_folders(options.folders, options.fps)
        _report(conversion)
        if options.held_out:
            kept, held_out = split_by_subject(conversion.motion, options.held_out)
            _write(kept, options.out)
            _write(held_out, options.out.with_name(f"{options.out.stem}-held-out.npz"))
        else:
            _write(conversion.motion, options.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _write(motion: Motion, path: Path) -> None:
    motion.save(path)
    print(
        f"{len(motion)} frames of {len(motion.clips)} clips of {len(set(motion.subjects))} subjects -> {path}"
    )


def _report(conversion: Conversion) -> None:
    motion = conversion.motion
    print(f"{'subject':<16}{'clips':>6}{'frames':>8}{'usable':>8}  from")
    for subject in sorted(set(motion.subjects)):
        own = motion.of_subjects([subject])
        share = f"{100 * float(own.usable.float().mean()):.1f} %"
        origin = ", ".join(sorted(set(own.skeletons)))
        print(f"{subject:<16}{len(own.clips):>6}{len(own):>8}{share:>8}  {origin}")
    share = f"{100 * float(motion.usable.float().mean()):.1f} %"
    print(f"{'all':<16}{len(motion.clips):>6}{len(motion):>8}{share:>8}")
    for name, reason in conversion.skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
