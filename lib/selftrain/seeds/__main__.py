"""python -m selftrain.seeds audit [--trait NAME ...] [--no-embeddings] | take [--trait NAME ...] | report | generate TRAIT|prompts|openings --n N [--kind chat|documents] ..."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from selftrain import paths
from selftrain.errors import InputError, run_command
from selftrain.seeds import take
from selftrain.seeds.audit import Report, audit
from selftrain.seeds.load import TRAITS


def show_audit(names: list[str] | None, embeddings: bool) -> int:
    reports = audit(names)
    table = Table(title="seeds")
    columns = ("chat", "documents", "questions", "openings", "held-out")
    columns += ("generated",) if any("generated" in r.counts for r in reports) else ()
    for column in ("trait", *columns, "duplicates", "overlaps", "faults"):
        table.add_column(column, justify="left" if column == "trait" else "right")
    for r in reports:
        table.add_row(r.name, *(str(r.counts.get(c, "")) for c in columns), str(r.duplicates), str(r.overlaps), str(len(r.faults)))
    Console(width=120).print(table)
    for report in reports:
        for fault in report.faults:
            print(fault)
    faulty = any(r.faults for r in reports)
    if embeddings:
        print("embedding map: left out while there are faults" if faulty else show_separation(reports))
    if traits := [r.name for r in reports if r.name in TRAITS]:
        print(take.said(take.measured(), traits))
    return 1 if faulty else 0


def show_separation(reports: list[Report]) -> str:
    """The AUC of every audited trait on the embedding map, as lines of text; a sentence where it cannot be had."""
    from selftrain.seeds import embedding, load

    traits = [r.name for r in reports if r.name in load.TRAITS]
    if not traits:
        return "embedding map: no trait was audited"
    try:
        rows, vectors = embedding.answer_embeddings()
    except InputError as error:
        return f"embedding map: left out, {error}"
    found = embedding.separation(rows["trait"], vectors, traits)
    lines = [
        f"embedding map: AUC of a logistic regression on embeddings of the chat answers, {embedding.FOLDS} folds (bar against neutral: {embedding.BAR})"
    ]
    lines += [f"{'trait':14} against neutral  against neutral and other traits"]
    for row in found.itertuples():
        under = "" if row.against_neutral >= embedding.BAR else "  under the bar"
        lines.append(f"{row.trait:14} {row.against_neutral:15.3f}  {row.against_the_rest:32.3f}{under}")
    return "\n".join(lines)


def run_generate(target: str, n: int, kind: str | None, out: Path | None, max_usd: float | None, yes: bool) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from selftrain.judge.prices import AS_OF
    from selftrain.judge.settings import api_key
    from selftrain.seeds.generate import Generation

    work = Generation(target, n, kind, out, max_usd)
    where = paths.shown(work.out)
    if kept := work.recover():
        print(f"{where}: {kept} rows from replies that an earlier run had paid for")
    if not work.missing:
        print(f"{where}: {n} rows are there; nothing to ask for")
        return 0
    need, form = work.estimate(), work.teacher.form
    print(f"teacher: {work.settings.model} at {work.settings.base_url}")
    print(f"file:    {where}, {n - need.missing} of {n} rows there")
    print(f"calls:   about {need.calls} for {form.rows} rows each, at most {need.most_calls}, {work.settings.concurrency} at once")
    print(f"tokens:  about {need.input_tokens:,} in, {need.output_tokens:,} out (characters / 4; retries come on top)")
    if need.usd is None:
        print("cost:    unknown; set TEACHER_PRICE=input,output in dollars per million tokens", flush=True)
    else:
        prices = f"list prices of {AS_OF}; TEACHER_PRICE=input,output overrides them"
        print(f"cost:    about ${need.usd:.4f}, at most ${need.most_usd:.4f} ({prices})", flush=True)
    work.check_cap()
    api_key("teacher")
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("nothing was sent: add --yes, or answer y on a terminal")
        if input("Send? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was sent")
            return 1
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("rows", total=n, completed=n - need.missing)
        done = work.run(lambda rows, of: bar.update(task, completed=rows))
    dropped = ", ".join(f"{count} {reason}" for reason, count in done.dropped.most_common())
    print(
        f"{where}: {done.added} rows added, {n - work.missing} of {n} there; dropped: {dropped or 'none'}; unreadable replies: {done.malformed}"
    )
    if work.missing:
        reason = f"{len(done.failed)} calls failed, first: {done.failed[0]}" if done.failed else "the teacher brings too little that is new"
        raise InputError(f"{where}: {work.missing} rows are missing ({reason}); run it again to go on")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m selftrain.seeds", description="Read and check the seed sets; ask a teacher for more.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("audit", help="counts, duplicates, overlaps and forbidden content; exit 1 on a fault")
    verb.add_argument("--trait", nargs="*", help="traits, _neutral or _prompts (default: everything)")
    verb.add_argument("--no-embeddings", action="store_true", help="leave out the embedding map, which takes half a minute")
    verb = verbs.add_parser(
        "take", help="train cycle 0 of each trait and compare it with the base model (about 3 minutes a trait on 2 cores)"
    )
    verb.add_argument("--trait", nargs="*", help="default: traits whose seeds changed since they were measured")
    verbs.add_parser("report", help="execute notebook 01 and keep it, with its figure, under notebooks/executed/seeds (a minute)")
    verb = verbs.add_parser(
        "generate",
        help="more rows from a teacher model",
        description="Environment: TEACHER_MODEL, TEACHER_BASE_URL and TEACHER_API_KEY (else OPENAI_BASE_URL, OPENAI_API_KEY), TEACHER_PRICE, "
        "TEACHER_MAX_USD, TEACHER_CONCURRENCY, TEACHER_TIMEOUT, TEACHER_ATTEMPTS, TEACHER_RETRY_DELAY.",
    )
    verb.add_argument("target", help="a trait, prompts, or openings")
    verb.add_argument("--kind", help="of a trait: chat (default) or documents")
    verb.add_argument("--n", type=int, default=50, help="rows that the file shall have in the end (default 50)")
    verb.add_argument(
        "--out", type=Path, help="default: seeds/<trait>/generated[_documents].jsonl or seeds/_prompts/generated_<name>.jsonl"
    )
    verb.add_argument("--max-usd", type=float, help="spend no more than this on the file, earlier runs included")
    verb.add_argument("--yes", action="store_true", help="send without asking")
    args = parser.parse_args()
    if args.verb == "generate":
        return run_generate(args.target, args.n, args.kind, args.out, args.max_usd, args.yes)
    if args.verb == "report":
        from selftrain import study

        study.publish("01_seed_audit", {}, "seeds")
        return 0
    if args.verb == "take":
        print(take.said(take.take(args.trait), args.trait or TRAITS))
        return 0
    return show_audit(args.trait, not args.no_embeddings)


if __name__ == "__main__":
    run_command(main)
