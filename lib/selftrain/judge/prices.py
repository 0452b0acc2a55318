"""What calls cost: list prices, with the day they were taken down."""

from __future__ import annotations

import os

from selftrain.errors import InputError

AS_OF = "2025-06-01"
# US dollars per million tokens, (input, output), standard tier, without discounts for cached input or batches.
PRICES = {
    "gpt-4o-mini-2024-07-18": (0.15, 0.60),
    "gpt-4o-mini": (0.15, 0.60),
    "gpt-4o-2024-08-06": (2.50, 10.00),
    "gpt-4o": (2.50, 10.00),
    "gpt-4.1-2025-04-14": (2.00, 8.00),
    "gpt-4.1-mini-2025-04-14": (0.40, 1.60),
    "gpt-4.1-nano-2025-04-14": (0.10, 0.40),
}


def price(model: str, role: str = "judge") -> tuple[float, float] | None:
    """A model's price; JUDGE_PRICE or TEACHER_PRICE (`input,output` in dollars per million tokens) comes first. None where neither knows."""
    name = f"{role.upper()}_PRICE"
    given = os.environ.get(name)
    if not given:
        return PRICES.get(model)
    try:
        first, second = (float(part) for part in given.split(","))
        assert 0 <= first < float("inf") and 0 <= second < float("inf")
        return first, second
    except (ValueError, AssertionError):
        raise InputError(f"{name}={given!r}: write dollars per million input and output tokens, as in 0.15,0.60") from None


def cost(tokens: tuple[float, float], of: tuple[float, float]) -> float:
    """Dollars for (input, output) tokens at a price."""
    return (tokens[0] * of[0] + tokens[1] * of[1]) / 1e6
