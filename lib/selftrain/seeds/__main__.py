"""python -m selftrain.seeds audit [--trait NAME ...]"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from selftrain.errors import run_command
from selftrain.seeds.audit import audit


def show_audit(names: list[str] | None) -> int:
    reports = audit(names)
    table = Table(title="seeds")
    columns = ("chat", "documents", "questions", "openings", "held-out")
    for column in ("trait", *columns, "duplicates", "overlaps", "faults"):
        table.add_column(column, justify="left" if column == "trait" else "right")
    for r in reports:
        table.add_row(r.name, *(str(r.counts.get(c, "")) for c in columns), str(r.duplicates), str(r.overlaps), str(len(r.faults)))
    Console(width=120).print(table)
    for report in reports:
        for fault in report.faults:
            print(fault)
    return 1 if any(r.faults for r in reports) else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m selftrain.seeds", description="Read and check the seed sets.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("audit", help="counts, duplicates, overlaps and forbidden content; exit 1 on a fault")
    verb.add_argument("--trait", nargs="*", help="traits, _neutral or _prompts (default: everything)")
    args = parser.parse_args()
    return show_audit(args.trait)


if __name__ == "__main__":
    run_command(main)
