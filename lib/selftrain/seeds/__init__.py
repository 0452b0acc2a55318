"""Seed sets, prompts, questions, openings and rubrics: reading them, checking them, drawing from them."""

from selftrain.seeds.load import (
    TRAITS,
    Rubric,
    chat_rows,
    check_traits,
    document_rows,
    drawn_prompts,
    held_out,
    judge_rows,
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
    "drawn_prompts",
    "held_out",
    "judge_rows",
    "openings",
    "prompts",
    "questions",
    "rubric",
    "seed_rows",
]
