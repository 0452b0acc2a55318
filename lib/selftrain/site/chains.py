"""Chains and their answers as the sample browser reads them: one index of all chains, one record a panel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from selftrain import paths, results
from selftrain.config import ChainConfig
from selftrain.errors import InputError
from selftrain.figures import TRAIT_COLOURS
from selftrain.site.script import file_name, number

TEXT_LIMIT = 16_000_000  # bytes of answers that one study may bring into the site
# What a reader chooses a chain by, in this order; `variant` is whatever else differs between two chains that agree in all the others.
KEYS = {
    "study": "study",
    "trait": "trait",
    "regime": "regime",
    "arm": "init",
    "n_seed": "N",
    "n_sampled": "M",
    "beta": "beta",
    "seed": "training seed",
    "variant": "variant",
}
_NO_VARIANT = {"study", "panel", "judge", "last_cycle", "preset"}  # these change no result of a cycle
CYCLE_FIELDS = ["cycle", "trait", "lo", "hi", "coherence", "judged", "requested"]
ANSWER_FIELDS = ["question", "sample", "trait", "coherence", "status", "finished", "text"]


@dataclass(frozen=True)
class StudyData:
    """One study: `chains` for the index, `panels` by file name, and how many stored answers are shown."""

    name: str
    table: pd.DataFrame
    chains: list[dict[str, Any]]
    panels: dict[str, dict[str, Any]]
    stored: int
    shown: int


def stored_studies() -> list[str]:
    """Studies under results/ that hold committed tables or a complete chain, the largest first; InputError where there are none."""
    folders = [p for p in paths.RESULTS.glob("*") if p.is_dir()] if paths.RESULTS.is_dir() else []
    complete = {p.name: sum(m["status"] == "complete" for m in results.manifests(p.name)) for p in folders}
    names = [p.name for p in folders if complete[p.name] or any(p.glob("tables/*.cycles.parquet"))]
    if not names:
        raise InputError(f"{paths.shown(paths.RESULTS)}: no study with results; run `make reproduce`")
    return sorted(names, key=lambda name: (-complete[name], name))


def arm(settings: dict[str, Any]) -> str:
    """Where a chain's cycles start from, and its null arm if it is one."""
    name = f"dose-matched {settings['init']}" if settings.get("dose_matched") is True else settings["init"]
    return name if settings["null"] == "none" else f"{name}, {settings['null']} null"


def read(study: str) -> StudyData:
    """A study's chains with their answers under each chain's default judge (results.load); texts above TEXT_LIMIT are thinned evenly."""
    table = results.load(study)
    manifests = {m["chain"]: m["config"] for m in results.manifests(study)}
    rows = {chain: group.sort_values("cycle") for chain, group in table.groupby("chain", sort=False)}
    settings = {chain: _settings(study, group.iloc[0], manifests.get(chain, {})) for chain, group in rows.items()}
    variants = _variants(settings)
    texts, stored = _texts(study, table)
    chains, panels = [], {}
    for chain in sorted(rows, key=lambda c: (_order(settings[c]), variants[c], c)):
        setting, group = settings[chain], rows[chain]
        name = f"{file_name(study)}/{file_name(setting['panel'])}.js"
        panel = panels.setdefault(name, {"texts": [], "questions": {}, "chains": {}, "_at": {}})
        answers = _answers(texts.get(chain, []), panel)
        panel["chains"][chain] = {"cycles": [_cycle(row) for row in group.to_dict("records")], "answers": answers}
        chains.append(
            {
                "chain": chain,
                "file": name,
                **{key: setting[key] for key in KEYS if key != "variant"},
                "variant": variants[chain],
                "model": setting["model"],
                "judge": str(group["judge"].iloc[0]),
                "judge_hash": ", ".join(sorted(set(group["judge_hash"].dropna().astype(str)))),
                "complete": bool(group["complete"].iloc[0]),
            }
        )
    for panel in panels.values():
        del panel["_at"]
    return StudyData(study, table, chains, panels, stored, sum(len(group) for group in texts.values()))


def _settings(study: str, row: pd.Series, config: dict[str, Any]) -> dict[str, Any]:
    """A chain's settings: its manifest where there is one, for the table's n_sampled can be the number of answers; else its row."""
    own = config or {k: v for k, v in row.items() if k in ChainConfig.model_fields and pd.notna(v)}
    setting = {**own, "study": study, "beta": number(own.get("beta"), 6)}
    for key in ("n_seed", "n_sampled", "seed"):
        setting[key] = number(setting[key], 0)
    return {**setting, "null": own.get("null") or "none", "arm": arm(setting)}


def _order(setting: dict[str, Any]) -> tuple:
    traits = list(TRAIT_COLOURS)
    place = traits.index(setting["trait"]) if setting["trait"] in traits else len(traits)
    null = setting["null"] != "none"
    return (
        place,
        setting["trait"],
        setting["regime"],
        null,
        setting["arm"],
        *(setting[k] or 0 for k in ("n_seed", "n_sampled", "beta", "seed")),
    )


def _variants(settings: dict[str, dict[str, Any]]) -> dict[str, str]:
    """For every chain what else tells it from those that agree in KEYS: the settings that differ anywhere in its study, trait and regime."""
    groups: dict[tuple, list[str]] = {}
    for chain, setting in settings.items():
        groups.setdefault(tuple(setting[k] for k in KEYS if k != "variant"), []).append(chain)
    differing: dict[tuple, set[str]] = {}
    for same in groups.values():
        first = settings[same[0]]
        names = {k for chain in same for k in settings[chain]} - _NO_VARIANT
        found = {k for k in names if len({_text(settings[c].get(k)) for c in same}) > 1}
        differing.setdefault((first["study"], first["trait"], first["regime"]), set()).update(found)
    out = {}
    for chain, setting in settings.items():
        keys = sorted(differing[setting["study"], setting["trait"], setting["regime"]])
        out[chain] = ", ".join(f"{k} {_text(setting.get(k))}" for k in keys)
    return out


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _texts(study: str, table: pd.DataFrame) -> tuple[dict[str, list[dict]], int]:
    """Answers by chain under the chain's judge, in the order of (cycle, question, sample), and how many are stored."""
    try:
        texts = results.load_texts(study)
    except InputError:  # cycles without texts: the curves can still be shown
        return {}, 0
    judges = table.drop_duplicates("chain").set_index("chain")["judge"]
    texts = texts[texts["judge"] == texts["chain"].map(judges)]
    kept = thinned(texts).sort_values(["chain", "cycle", "question_id", "sample"], kind="stable")
    return {chain: group.to_dict("records") for chain, group in kept.groupby("chain")}, len(texts)


def thinned(texts: pd.DataFrame, limit: int | None = None) -> pd.DataFrame:
    """All answers, or as many a (chain, cycle), first samples of every question first, as fit `limit` bytes (default TEXT_LIMIT) together."""
    limit = TEXT_LIMIT if limit is None else limit
    texts = texts.sort_values(["chain", "cycle", "sample", "question_id"], kind="stable")
    place = texts.groupby(["chain", "cycle"]).cumcount()
    size = texts["answer"].str.encode("utf-8", "replace").str.len()
    total = size.groupby(place).sum().cumsum()
    return texts[place < max(1, int((total <= limit).sum()))]


def _cycle(row: dict[str, Any]) -> list:
    scores = [number(row.get(k)) for k in ("trait_score", "trait_lo", "trait_hi", "coherence")]
    return [int(row["cycle"]), *scores, number(row.get("n_judged"), 0), number(row.get("n_requested"), 0)]


def _answers(rows: Iterable[dict], panel: dict[str, Any]) -> dict[str, list]:
    """Answers by cycle as rows of ANSWER_FIELDS; a text is kept once a panel, since chains share their base and often cycle 0."""
    out: dict[str, list] = {}
    at = panel["_at"]
    for row in rows:
        panel["questions"].setdefault(row["question_id"], {"prompt": row["prompt"], "set": row["set"]})
        if row["answer"] not in at:
            at[row["answer"]] = len(panel["texts"])
            panel["texts"].append(row["answer"])
        scores = number(row["trait_score"]), number(row["coherence"])
        out.setdefault(str(row["cycle"]), []).append(
            [row["question_id"], int(row["sample"]), *scores, row["status"], int(bool(row["finished"])), at[row["answer"]]]
        )
    return out
