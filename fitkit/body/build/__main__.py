"""Command line of the builder."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    """Build the asset, measure it, and write it with its figures."""
    parser = argparse.ArgumentParser(prog="python -m fitkit.body.build", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", type=Path, help="where to write the acceptance figures as JSON")
    parser.add_argument("--no-correctives", action="store_true", help="leave posedirs at zero (quick)")
    args = parser.parse_args()

    from fitkit.body.build.assemble import build

    begin = time.time()
    figures = build(args.out, args.seed, correctives=not args.no_correctives)
    figures["build_seconds"] = round(time.time() - begin)
    figures["megabytes"] = round(args.out.stat().st_size / 1e6, 2)
    text = json.dumps(figures, indent=1)
    if args.figures:
        args.figures.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
