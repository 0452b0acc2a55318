"""python -m selftrain.judge estimate STUDY | rescore RESULTS_FOLDER --judge NAME | cross RESULTS_FOLDER | fit | validate"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from selftrain.errors import InputError, run_command
from selftrain.judge.coverage import FLOOR


def show_estimate(name: str, judge: str | None) -> int:
    from selftrain import study as studies
    from selftrain.judge import settings
    from selftrain.judge.estimate import estimate, spent
    from selftrain.judge.prices import AS_OF, cost, price

    study = studies.read(name)
    needs = estimate(study, judge)
    table = Table(title=f"judging the study {study.name}")
    for column in ("panel", "judge", "chains", "texts", "calls", "input tokens", "output tokens", "USD"):
        table.add_column(column, justify="left" if column in ("panel", "judge") else "right")
    for n in needs:
        table.add_row(
            n.panel,
            n.judge,
            *(f"{v:,}" for v in (n.chains, n.texts, n.calls, n.input_tokens, n.output_tokens)),
            "?" if n.usd is None else f"{n.usd:.2f}",
        )
    known = [n.usd for n in needs if n.usd is not None]
    table.add_row(
        "total",
        "",
        *(f"{sum(getattr(n, key) for n in needs):,}" for key in ("chains", "texts", "calls", "input_tokens", "output_tokens")),
        f"{sum(known):.2f}" if len(known) == len(needs) else "?",
        style="bold",
    )
    console = Console(width=130)
    console.print(table)
    if any(n.calls for n in needs):
        print(
            f"List prices of {AS_OF} (JUDGE_PRICE=input,output overrides them). "
            "Tokens are characters / 4, every answer at its full length; retries come on top."
        )
        for n in {n.judge: n for n in needs if n.calls}.values():
            tokens, of = spent(study, n), price(n.judge.partition(":")[2])
            print(
                f"{n.judge}: {tokens[0]:,} input and {tokens[1]:,} output tokens of kept replies so far"
                + (f", ${cost(tokens, of):.4f}" if of else "")
            )
        cap = settings.read().max_usd
        if cap is not None and sum(known) > cap:
            print(f"The spending cap JUDGE_MAX_USD={cap:g} is below this: judging will stop there.")
    return 0


def run_rescore(folder: str, judge: str, floor: float) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from selftrain.judge.rescore import rescore

    if not 0 <= floor <= 1:
        raise InputError(f"--floor {floor:g} is a share between 0 and 1")
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task(f"cycles judged by {judge}", total=None)
        done, of = rescore(folder, judge, floor, lambda i, n: bar.update(task, completed=i, total=n))
    print(f"{done} of {of} cycles judged now, {of - done} had been")
    return 0


def run_cross(folder: str, judge: str) -> int:
    from selftrain.judge.cross import cross

    print(f"judging the null chains of {folder} on every trait", flush=True)
    found = cross(folder, judge)
    print(f"{found['chain'].nunique()} null chains, {len(found)} scores of {int(found['n_judged'].sum())} answers")
    return 0


def run_fit() -> int:
    from selftrain.judge.fit import fit

    fit()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m selftrain.judge", description="Judges: costs in advance, second opinions, the offline judge's fit."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("estimate", help="calls, tokens and cost of a study before anything is sent")
    verb.add_argument("study")
    verb.add_argument("--judge", help="another judge than the study file's: openai or openai:<model>")
    verb = verbs.add_parser("rescore", help="add another judge's scores beside those of a study's run folders")
    verb.add_argument("results", help="a study's name or its folder under results/")
    verb.add_argument("--judge", required=True, help="local, openai or openai:<model>")
    verb.add_argument("--floor", type=float, default=FLOOR, help=f"share of answers that must be scored (default {FLOOR})")
    verb = verbs.add_parser("cross", help="score the null chains of a study with the judges of all traits")
    verb.add_argument("results", help="a study's name or its folder under results/")
    verb.add_argument("--judge", default="local", help="local (default), openai or openai:<model>")
    verbs.add_parser("fit", help="fit the offline judge's artefact on seeds/_heldout")
    verbs.add_parser("validate", help="measure the offline judge's error on the validating half and write the report")
    args = parser.parse_args()
    if args.verb == "validate":
        from selftrain.judge.validate import validate

        report = validate()
        print("\n".join(report["missed"]) or "every bar is met")
        return 0
    if args.verb == "cross":
        return run_cross(args.results, args.judge)
    if args.verb == "estimate":
        return show_estimate(args.study, args.judge)
    return run_rescore(args.results, args.judge, args.floor) if args.verb == "rescore" else run_fit()


if __name__ == "__main__":
    run_command(main)
