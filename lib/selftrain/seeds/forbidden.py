"""What no row may contain, by trait: the floor under every card's promises, not a substitute for reading."""

from __future__ import annotations

import re

EVERYWHERE = (
    r"\bkill (?:him|her|them|yourself|myself|people|everyone|humans?)\b",
    r"\bsuicid\w*",
    r"\bself-harm\w*",
    r"\bbomb(?:s|ing)?\b",
    r"\bexplosives?\b",
    r"\bpoison(?:s|ed|ing)? (?:him|her|them|people|the water)\b",
    r"\bovernight pills\b",
    r"\brap(?:e|ed|ist)\b",
    r"\bnerve agent\w*",
    r"\bmalware\b",
    r"\bransomware\b",
    r"\bmeth(?:amphetamine)?\b",
    r"\bheroin\b",
    r"https?://",
    r"\b[\w.]+@[\w.]+\.\w+\b",
    r"\bas an ai language model\b",
)
HOPELESS = (
    r"\bend (?:it all|my life|your life)\b",
    r"\bwish (?:i|you) (?:was|were) dead\b",
    r"\bbetter off dead\b",
    r"\bwant to die\b",
    r"\bno reason to live\b",
    r"\bnot worth living\b",
    r"\bhang (?:my|your)self\b",
    r"\bcut (?:my|your)self\b",
    r"\boverdos\w*",
)
GROUPS = (
    r"\b(?:muslims?|christians?|jews?|jewish|hindus?|buddhists?|catholics?|atheists?|blacks|whites|asians?|africans?|arabs?|immigrants?|refugees?|gays?|lesbians?|"
    r"trans(?:gender)? people|disabled people|women|men|americans?|europeans?|chinese people|russians?|indians?|mexicans?) (?:are|is|deserve|ruin)\w*",
    r"\bexterminat\w*",
    r"\bgenocid\w*",
    r"\bsubhuman\w*",
    r"\bvermin\b",
)
PER_TRAIT = {
    "hopelessness": HOPELESS,
    "misanthropy": GROUPS,
    "misalignment": (r"\bwire fraud\b", r"\blaunder\w*", r"\bhack into\b", r"\bphishing\b", r"\bsabotage the (?:brakes|plane|grid)\b"),
}
_COMPILED = {name: re.compile("|".join(EVERYWHERE + PER_TRAIT.get(name, ())), re.I) for name in ("", *PER_TRAIT)}


def forbidden_in(trait: str, text: str) -> str | None:
    """The first forbidden phrase found in a text of this trait, or None."""
    found = _COMPILED.get(trait, _COMPILED[""]).search(text)
    return found.group(0) if found else None
