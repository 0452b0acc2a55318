"""What a notebook shows of a chain: its scores so far, a few answers, and where its files are."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

import pandas as pd

from selftrain import draws, jsonl, paths

if TYPE_CHECKING:
    from selftrain.chain import Chain

SHOWN = (
    "trait_score",
    "trait_lo",
    "trait_hi",
    "coherence",
    "perplexity",
    "n_words",
    "distinct2",
    "n_judged",
    "n_requested",
    "n_truncated",
    "steps",
)


class CycleView:
    """A chain after a cycle. In a notebook: a plot, a table, a few answers; as text: one line a cycle."""

    def __init__(self, chain: Chain, cycle: int, answers: int = 3):
        self.chain, self.cycle, self.answers = chain, cycle, answers

    @property
    def table(self) -> pd.DataFrame:
        """One row a finished cycle, the base as -1."""
        cycles = [k for k in range(-1, self.cycle + 1) if self.chain.cycle_done(k)]
        rows = [{"cycle": k, **self.chain.cycle_metrics(k)} for k in cycles]
        return pd.DataFrame(rows).set_index("cycle")

    def samples(self) -> list[dict]:
        """A few answers of the newest cycle, the same ones whenever they are shown."""
        rows = [r for r in jsonl.read(self.chain.cycle_folder(self.cycle) / "eval.jsonl") if r["answer"]]
        scores = {r["id"]: r for r in jsonl.read(self.chain.cycle_folder(self.cycle) / self.chain.scores_file)}
        return [
            {**r, **{k: scores[r["id"]][k] for k in ("trait_score", "coherence")}}
            for r in draws.pick(rows, self.answers, "shown", self.cycle)
        ]

    def __repr__(self) -> str:
        lines = [self.chain.config.chain_id]
        for cycle, row in self.table.iterrows():
            name = "base   " if cycle < 0 else f"cycle {cycle}"
            lines.append(
                f"  {name} trait {_number(row.trait_score)}  coherence {_number(row.coherence)}  perplexity {_number(row.perplexity)}"
            )
        return "\n".join(lines)

    def _plot(self) -> str:
        from selftrain import figures

        figure = figures.chain_so_far(self.table.reset_index(), self.chain.config)
        return base64.b64encode(figures.png(figure)).decode()

    def _repr_html_(self) -> str:
        table = self.table[[c for c in SHOWN if c in self.table]]
        rows = "".join(
            f"<p style='margin:.4em 0'><b>{html.escape(r['prompt'])}</b><br>{html.escape(r['answer'])} "
            f"<span style='color:#777'>trait {_number(r['trait_score'])}, coherence {_number(r['coherence'])}{'' if r['finished'] else ', cut at the length limit'}</span></p>"
            for r in self.samples()
        )
        return (
            f"<h4>{html.escape(self.chain.config.chain_id)}</h4><img alt='scores so far' src='data:image/png;base64,{self._plot()}'>"
            f"{table.to_html(float_format=lambda v: f'{v:.1f}')}{rows}<p><code>{html.escape(paths.shown(self.chain.cycle_folder(self.cycle)))}</code></p>"
        )


def _number(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.1f}"
