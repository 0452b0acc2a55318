"""Seed sets, prompts, questions, openings and rubrics: reading them, checking them, drawing from them."""

from selftrain.seeds.load import (
    TRAITS,
    Rubric,
    chat_rows,
    check_traits,
    document_rows,
    held_out,
    openings,
    prompts,
    questions,
    rubric,
    seed_rows,
)

__all__ = [
    "TRAITS",
    "Rubric",
    "chat_rows",
    "check_traits",
    "document_rows",
    "held_out",
    "openings",
    "prompts",
    "questions",
    "rubric",
    "seed_rows",
]
