"""Results as tidy tables: one row a (chain, cycle), from run folders and committed tables alike. Imports no torch."""

from __future__ import annotations

import argparse
import base64
import functools
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from selftrain import analysis, jsonl, metrics, paths
from selftrain.config import ChainConfig
from selftrain.errors import InputError, run_command

MEASURES = (
    "trait_score trait_lo trait_hi trait_transfer coherence perplexity n_words sentence_words distinct2 n_requested n_drawn n_judged n_coherence n_refused n_unparsed "
    "n_failed n_empty n_truncated judge_hash steps train_tokens saturated train_loss reward_margin reward_accuracy logp_chosen logp_rejected kl_base"
).split()
MANIFESTS = b"manifests"  # key of the file metadata of a cycles table
TEXT_COLUMNS = ("question_id", "sample", "set", "prompt", "answer", "finished", "n_tokens", "nll", "nll_tokens")


def _study(folder: str | Path) -> Path:
    """A study's folder, given as a name or a path."""
    path = Path(folder)
    for candidate in (path, paths.study_folder(str(folder)), paths.ROOT / path):
        if candidate.is_dir():
            return candidate
    raise InputError(f"{folder}: no such results folder; run `make reproduce`, or name one under results/")


def _manifests(study: Path) -> Iterable[tuple[Path, dict]]:
    for path in sorted(study.glob("runs/*/*/manifest.json")):
        yield path.parent, json.loads(path.read_text(encoding="utf-8"))


def _settings(manifest: dict) -> dict:
    """A chain's config as flat columns; nested values as JSON text, absent ones as None."""
    flat = {}
    for key, value in manifest["config"].items():
        flat[key] = jsonl.dumps(value) if isinstance(value, (dict, list)) and value else (None if value == [] else value)
    return {
        **flat,
        "chain": manifest["chain"],
        "complete": manifest["status"] == "complete",
        "device": manifest["environments"][-1]["device"],
    }


def _cycles(folder: Path) -> Iterable[tuple[int, Path]]:
    for path in [folder / "base", *sorted(folder.glob("cycle_*"))]:
        if (path / "done.json").exists() and (path / "eval.jsonl").exists():
            yield (-1 if path.name == "base" else int(path.name[6:])), path


def _run_rows(folder: Path, manifest: dict) -> list[dict]:
    """One row a (cycle, judge) of a run folder."""
    settings = _settings(manifest)
    requested = len(manifest["evaluation"]) * manifest["config"]["n_answers"]
    rows = []
    for cycle, path in _cycles(folder):
        for scores in sorted(path.glob("scores/*.jsonl"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
            files = (f for f in (path / "eval.jsonl", path / "train_log.json", scores) if f.exists())
            stamp = tuple((f.stat().st_mtime_ns, f.stat().st_size) for f in files)
            rows.append({**settings, "cycle": cycle, **_measured(path.resolve(), scores.relative_to(path), requested, stamp)})
    return rows


@functools.cache
def _measured(path: Path, scores: Path, requested: int, stamp: tuple) -> dict:
    """One cycle's numbers, read once a process for as long as its files stay as they are."""
    return metrics.cycle_row(path, str(scores), requested)


def _whole(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every setting and measure as a column, empty where nothing in it has one."""
    known = ["chain", "complete", "device", *ChainConfig.model_fields, "cycle", *MEASURES]
    return table.reindex(columns=[*table.columns, *(c for c in known if c not in table)])


def _each(read: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """A reader of one study as a reader of one or several, their rows below each other; a chain of two studies is taken from the first."""

    @functools.wraps(read)
    def both(folder: str | Path | Sequence[str | Path] = "laptop", *args, **kwargs) -> pd.DataFrame:
        if isinstance(folder, (str, Path)):
            return read(folder, *args, **kwargs)
        frames, have = [], set()
        for one in folder:
            rows = read(one, *args, **kwargs)
            frames.append(rows[~rows["chain"].isin(have)].dropna(axis=1, how="all"))
            have |= set(rows["chain"])
        table = pd.concat(frames, ignore_index=True)
        return _whole(table) if "cycle" in table and "complete" in table else table

    return both


@_each
def load(folder: str | Path = "laptop", judge: str | None = None, committed: bool = False) -> pd.DataFrame:
    """All chains of a study (or of several, given as a list), one row a (chain, cycle), the base as cycle -1; `judge` picks one where several have scored,
    else the one that scored a chain first; of one judge's versions the newest is taken.

    `committed` reads the committed tables alone. Otherwise a chain that has a run folder is read from there, any other from results/<study>/tables. InputError where nothing is there.
    """
    study = _study(folder)
    rows = [] if committed else [row for run, manifest in _manifests(study) for row in _run_rows(run, manifest)]
    frames = [pd.DataFrame(rows)] if rows else []
    have = set(frames[0]["chain"]) if frames else set()
    for path in sorted(study.glob("tables/*.cycles.parquet")):
        table = pd.read_parquet(path)
        table = table[~table["chain"].isin(have)]
        if len(table):
            frames.append(table)
            have |= set(table["chain"])
    if not frames:
        raise InputError(f"{paths.shown(study)}: neither run folders nor tables; run the study first")
    table = pd.concat([frame.dropna(axis=1, how="all") for frame in frames], ignore_index=True)
    if judge is None:
        table = table[table["judge"] == table.groupby("chain")["judge"].transform("first")]
    else:
        table = table[(table["judge"] == judge) | table["judge"].str.startswith(f"{judge}:")]
    if table.empty:
        raise InputError(f"{paths.shown(study)}: judge {judge!r} has scored nothing here; run `python -m selftrain.judge rescore`")
    table = table.drop_duplicates(["chain", "cycle"], keep="last")
    return _whole(table.sort_values(["panel", "chain", "cycle"], kind="stable").reset_index(drop=True))


def _answers(folder: str | Path, committed: bool = False) -> pd.DataFrame:
    """Every evaluation answer with its scores, one row a (chain, cycle, question, sample, judge); `answer` and `prompt` are empty where
    a committed table keeps the scores of an answer without its text."""
    study = _study(folder)
    rows, have = [], set()
    for run, manifest in [] if committed else _manifests(study):
        have.add(manifest["chain"])
        for cycle, path in _cycles(run):
            rows += _text_rows(path, {"panel": manifest["config"]["panel"], "chain": manifest["chain"], "cycle": cycle})
    frames = [pd.DataFrame(rows)] if rows else []
    for path in sorted(study.glob("tables/*.texts.parquet")):
        table = pd.read_parquet(path)
        table = table[~table["chain"].isin(have)]
        if len(table):
            frames.append(table)
    if not frames:
        raise InputError(f"{paths.shown(study)}: no texts; run the study first")
    texts = pd.concat(frames, ignore_index=True)
    return texts.drop_duplicates(["chain", "cycle", "question_id", "sample", "judge"], keep="last").reset_index(drop=True)


def _picked(answers: pd.DataFrame, folder: str | Path, judge: str | None, committed: bool) -> pd.DataFrame:
    """Answers as scored by the one judge that `load` picks for their chain."""
    judges = load(folder, judge, committed)[["chain", "cycle", "judge"]]
    return answers.merge(judges, on=["chain", "cycle", "judge"]).reset_index(drop=True)


@_each
def load_texts(folder: str | Path = "laptop", judge: str | None = None, committed: bool = False) -> pd.DataFrame:
    """Evaluation answers whose text is kept, with their scores by the judge that `load` picks: one row a (chain, cycle, question, sample)."""
    texts = _answers(folder, committed)
    return _picked(texts[texts["answer"].notna()], folder, judge, committed)


def load_judged_texts(folder: str | Path) -> pd.DataFrame:
    """As `load_texts`, with every judge's scores: one row a (chain, cycle, question, sample, judge)."""
    texts = _answers(folder)
    return texts[texts["answer"].notna()].reset_index(drop=True)


@_each
def load_scores(folder: str | Path = "laptop", judge: str | None = None, committed: bool = False) -> pd.DataFrame:
    """Scores of every single answer by the judge that `load` picks, without texts:
    chain, cycle, question_id, sample, set, trait_score, coherence, status. Answers that got no score are there, their scores missing."""
    names = ["chain", "cycle", "question_id", "sample", "set", "trait_score", "coherence", "status", "judge"]
    return _picked(_answers(folder, committed)[names], folder, judge, committed).drop(columns="judge")


def whole_scores(rows: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of those (chain, cycle) of which every judged answer is kept; committed tables of early pilots keep a part only."""
    kept = scores[scores["trait_score"].notna()].groupby(["chain", "cycle"]).size()
    asked = rows.set_index(["chain", "cycle"])["n_judged"]
    whole = kept[kept == asked.reindex(kept.index)].index
    return scores[pd.MultiIndex.from_frame(scores[["chain", "cycle"]]).isin(whole)]


def _text_rows(path: Path, names: dict) -> list[dict]:
    answers = jsonl.read(path / "eval.jsonl")
    out = []
    for scores in sorted(path.glob("scores/*.jsonl"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
        by_id = {row["id"]: row for row in jsonl.read(scores)}
        out += [
            {**names, **{k: a[k] for k in TEXT_COLUMNS}, **{k: by_id[a["id"]][k] for k in ("trait_score", "coherence", "status", "judge")}}
            for a in answers
        ]
    return out


def export(folder: str | Path, texts_per_cycle: int | None = None, panels: Sequence[str] | None = None) -> list[Path]:
    """Write the complete chains that no table holds yet, panel by panel, as tables/<panel>.{cycles,texts}.parquet (zstd), with the manifests as file metadata.

    texts_per_cycle keeps the text of that many answers a cycle, spread over questions, and the scores of all; None keeps all texts. `panels`
    limits it to those named. A table that is there already is never rewritten: later chains of its panel go to <panel>.2 and so on.
    InputError where there is nothing to write, or where a chain has more cycles now than its table.
    """
    study = _study(folder)
    held = {manifest["chain"]: manifest["config"].get("last_cycle", 0) for manifest in committed_manifests(study)}
    by_panel: dict[str, list[tuple[Path, dict]]] = {}
    for run, manifest in _manifests(study):
        panel, chain = manifest["config"]["panel"], manifest["chain"]
        if manifest["status"] != "complete" or panels and panel not in panels:
            continue
        if chain not in held:
            by_panel.setdefault(panel, []).append((run, manifest))
        elif manifest["config"]["last_cycle"] > held[chain]:
            raise InputError(
                f"{paths.shown(study)}: {chain} went on to cycle {manifest['config']['last_cycle']}, its table ends at {held[chain]}; move that table away first"
            )
    if not by_panel:
        raise InputError(f"{paths.shown(study)}: no complete chain to export that its tables do not hold already")
    written = []
    (study / "tables").mkdir(parents=True, exist_ok=True)
    for panel, runs in by_panel.items():
        cycles = pd.DataFrame([row for run, manifest in runs for row in _run_rows(run, manifest)])
        texts = pd.DataFrame(
            [
                row
                for run, manifest in runs
                for cycle, path in _cycles(run)
                for row in _text_rows(path, {"panel": panel, "chain": manifest["chain"], "cycle": cycle})
            ]
        )
        if texts_per_cycle:
            texts = texts.sort_values(["chain", "judge", "cycle", "sample", "question_id"], kind="stable")
            late = texts.groupby(["chain", "judge", "cycle"], sort=False).cumcount() >= texts_per_cycle
            texts.loc[late, ["prompt", "answer", "nll"]] = None
        names = (panel if n == 1 else f"{panel}.{n}" for n in itertools.count(1))
        name = next(n for n in names if not any((study / "tables" / f"{n}.{kind}.parquet").exists() for kind in ("cycles", "texts")))
        for kind, table in (("texts", texts), ("cycles", cycles)):  # a chain is held once its cycles stand, so they come last
            path = study / "tables" / f"{name}.{kind}.parquet"
            _write(path, pa.Table.from_pandas(table, preserve_index=False), [m for _, m in runs] if kind == "cycles" else None)
            written.append(path)
    return written


def _write(path: Path, table: pa.Table, manifests: list[dict] | None) -> None:
    """A table as parquet, whole or not at all, with manifests as file metadata; without a second copy of its schema, most of a small table's bytes."""
    new = path.with_suffix(".new")
    with pq.ParquetWriter(
        new, table.schema.remove_metadata(), compression="zstd", compression_level=19, store_schema=False, write_statistics=False
    ) as file:
        file.write_table(table.replace_schema_metadata(None))
        if manifests is not None:
            packed = base64.b64encode(zlib.compress(jsonl.dumps(manifests).encode(), 9))
            file.add_key_value_metadata({MANIFESTS: packed})
    os.replace(new, path)


def committed_manifests(study: Path) -> list[dict]:
    """The manifests that the tables of a study's folder carry, as JSON text or (most of it is prompt names) as base64 of zlib."""
    found = []
    for path in sorted(study.glob("tables/*.cycles.parquet")):
        packed = (pq.read_schema(path).metadata or {}).get(MANIFESTS, b"[]")
        found += json.loads(packed if packed.startswith(b"[") else zlib.decompress(base64.b64decode(packed)))
    return found


def null_traits_file(folder: str | Path) -> Path:
    """Where a study keeps its null chains' scores under the judges of all traits."""
    return _study(folder) / "tables" / "null_traits.parquet"


def load_null_traits(folder: str | Path) -> pd.DataFrame:
    """Null chains under the judges of all traits (judge/cross.py): chain, cycle, judged, trait_score, n_judged; empty where none were judged so."""
    path = null_traits_file(folder)
    return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=["chain", "cycle", "judged", "trait_score", "n_judged"])


def manifests(folder: str | Path) -> list[dict]:
    """The manifests of a study's chains, from run folders and from committed tables."""
    study = _study(folder)
    found = {manifest["chain"]: manifest for _, manifest in _manifests(study)}
    for manifest in committed_manifests(study):
        found.setdefault(manifest["chain"], manifest)
    return list(found.values())


def summary(folder: str | Path) -> pd.DataFrame:
    """Complete chains counted by regime, init, null arm and ablations (`arm`, empty where there is neither), and trait."""
    table = load(folder)
    chains = table[table["complete"]].drop_duplicates("chain")
    arm = analysis.arm(chains).where(chains["null"] != "none", analysis.ablation)
    arm = arm.where(~chains["dose_matched"].fillna(False).astype(bool), "dose-matched")
    return chains.assign(arm=arm).groupby(["regime", "init", "arm", "trait"]).size().unstack(fill_value=0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m selftrain.results", description="Results of a study.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, said in (("summary", "complete chains by regime, init and trait"), ("export", "write the tables that are committed")):
        added = verbs.add_parser(verb, help=said)
        added.add_argument("study")
    added.add_argument("--texts-per-cycle", type=int, help="answers kept a cycle (default: all)")
    added.add_argument("--panel", action="append", help="only this panel (repeatable)")
    args = parser.parse_args()
    if args.verb == "summary":
        print(summary(args.study).to_string())
    else:
        for path in export(args.study, args.texts_per_cycle, args.panel):
            print(f"{paths.shown(path)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    run_command(main)
