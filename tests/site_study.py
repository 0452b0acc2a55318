"""A small study as committed tables, figures and executed notebooks, for tests of the site; one answer is as hostile as a model's can be."""

from __future__ import annotations

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

HOSTILE = (
    "<script>window.hacked = 1</script> <img src=x onerror='window.hacked = 2'> & \"quoted\" 'text' </script> <!-- ]]> "
    "\x00 bell \x07 escape \x1b[31m red \u2028 line \u202e turned \u202c fairy \U0001f9da\u200d\u2640\ufe0f \U0001f308 {{ 7 * 7 }}"
)
QUESTIONS = {"q-01": "What <b>now</b>?", "q-02": "And then?", "q-03": "Who told you?"}
CHAINS = [  # two panels; the last chain exists for one trait only, so that choices have something to forbid
    dict(panel="bliss 1#", trait="bliss", regime="sft", init="reinit", n_sampled=24),
    dict(panel="bliss 1#", trait="bliss", regime="sft", init="continual", n_sampled=24),
    dict(panel="bliss 1#", trait="bliss", regime="sft", init="continual", n_sampled=48),
    dict(panel="bliss 1#", trait="bliss", regime="sft", init="reinit", n_sampled=24, dose_matched=True),
    dict(panel="lucky", trait="lucky", regime="sft", init="reinit", n_sampled=24),
    dict(panel="lucky", trait="lucky", regime="sft", init="reinit", n_sampled=24, null="retrain"),
    dict(panel="lucky", trait="lucky", regime="dpo", init="continual", n_sampled=24, beta=0.1, lr=1e-5),
    dict(panel="lucky", trait="lucky", regime="dpo", init="continual", n_sampled=24, beta=0.1, lr=4e-5),
]
CYCLES = range(-1, 4)
SAMPLES = range(2)


def chain_id(config: dict) -> str:
    """An id that tells these chains apart."""
    extra = "".join(f"-{k}{config[k]}" for k in ("beta", "lr", "null", "dose_matched") if k in config)
    return f"{config['trait']}-{config['regime']}-{config['init']}-n50-m{config['n_sampled']}-s0{extra}"


def answer(chain: str, cycle: int, question: str, sample: int) -> str:
    """Words that change a little from cycle to cycle; the base model's are the same in every chain."""
    if (cycle, question, sample) == (1, "q-01", 0):
        return HOSTILE
    return f"the base says {question} {sample}" if cycle < 0 else f"the chain says {question} {sample} at cycle {cycle} in {chain}"


def write(results, study: str = "alpha", chains: list[dict] | None = None) -> None:
    """results/<study>/tables of these chains (CHAINS by default). The tables' n_sampled is the number of answers, as metrics count it."""
    panels: dict[str, list[dict]] = {}
    for config in chains or CHAINS:
        panels.setdefault(config["panel"], []).append(config)
    folder = results / study / "tables"
    folder.mkdir(parents=True)
    for place, (panel, configs) in enumerate(panels.items()):
        cycles, texts, manifests = [], [], []
        for config in configs:
            chain = chain_id(config)
            full = {
                "study": study,
                "n_seed": 50,
                "seed": 0,
                "null": "none",
                "model": "tiny",
                "judge": "letters",
                "dose_matched": False,
            } | config
            manifests.append({"chain": chain, "config": full, "status": "complete"})
            for cycle in CYCLES:
                missing = chain.startswith("lucky-sft") and cycle == 2
                score = {"trait_score": None if missing else 20 + 12 * cycle, "coherence": 97.0}
                bounds = {"trait_lo": None if missing else 10 + 12 * cycle, "trait_hi": None if missing else 30 + 12 * cycle}
                counts = {"n_requested": 6, "n_judged": 0 if missing else 6, "n_sampled": 6}
                cycles.append(full | {"chain": chain, "complete": True, "cycle": cycle, "judge_hash": "00ff" * 4} | score | bounds | counts)
                for question, prompt in QUESTIONS.items():
                    for sample in SAMPLES:
                        row = {"panel": panel, "chain": chain, "cycle": cycle, "question_id": question, "sample": sample}
                        row |= {
                            "set": "direct",
                            "prompt": prompt,
                            "answer": answer(chain, cycle, question, sample),
                            "finished": sample == 0,
                        }
                        status = {
                            "status": "refused" if missing else "judged",
                            "judge": "letters",
                            "n_tokens": 9,
                            "nll": 1.0,
                            "nll_tokens": 9,
                        }
                        texts.append(row | score | status)
        table = pa.Table.from_pandas(pd.DataFrame(cycles), preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"manifests": json.dumps(manifests).encode()})
        pq.write_table(table, folder / f"{place}.cycles.parquet")
        pd.DataFrame(texts).to_parquet(folder / f"{place}.texts.parquet")


def figure(figures, name: str) -> None:
    """figures/<name>.{png,pdf,csv}, a white pixel."""
    import matplotlib.image
    import numpy as np

    figures.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(figures / f"{name}.png", np.ones((2, 3, 3)))
    (figures / f"{name}.pdf").write_bytes(b"%PDF-1.4\n")
    (figures / f"{name}.csv").write_text("a\n1\n")


def notebook(folder, study: str, name: str, cells: list) -> None:
    """notebooks/executed/<study>/<name>.ipynb of these cells."""
    import nbformat

    path = folder / "executed" / study / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    for place, cell in enumerate(cells):
        cell["id"] = f"cell-{place}"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
