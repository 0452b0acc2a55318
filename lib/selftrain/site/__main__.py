"""Build the site: python -m selftrain.site build [--out site] [STUDY ...]"""

from __future__ import annotations

import argparse
from pathlib import Path

from selftrain.errors import run_command
from selftrain.site.build import build


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m selftrain.site", description="A static site from stored results.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("build", help="write the site; nothing is executed")
    verb.add_argument("studies", nargs="*", metavar="STUDY", help="studies under results/ (default: all that hold a complete chain)")
    verb.add_argument("--out", type=Path, default=Path("site"), help="folder to write (default: site)")
    args = parser.parse_args()
    print(build(args.out, args.studies).said())


if __name__ == "__main__":
    run_command(main)
