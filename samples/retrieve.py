"""A hook that looks up facts before each question is asked, without holding up the other rows.

    llmbatch run samples/questions.jsonl -m sim/demo --before samples.retrieve:with_facts

For each row it looks for documents and for a cached answer at the same time, and fetches all documents at the same
time: a row waits for the slowest of them, not for their sum. The "database" is a dict; the pauses are what one would
cost over the network.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

DOCUMENTS = {
    "moon": "The Moon is on average 384,400 km away from the Earth.",
    "mars": "A day on Mars takes 24 hours and 37 minutes.",
    "venus": "Venus turns once in 243 Earth days, against the direction in which it goes round the Sun.",
    "saturn": "Saturn has a mean density of 0.69 g/cm3, less than water.",
}
ANSWERED = {"How far away is the Moon?"}
SYSTEM = "Answer in one sentence, from these facts only:\n{}"

SEARCH_S, CACHE_S, FETCH_S = 0.05, 0.02, 0.03


async def with_facts(row: dict[str, Any]) -> list[dict[str, str]] | None:
    """The conversation to send: facts, then the question. None leaves the row out: its answer is known already."""
    question = row["question"]
    keys, known = await asyncio.gather(search(question), is_cached(question))
    if known:
        return None
    facts = await asyncio.gather(*(fetch(key) for key in keys))
    return [
        {"role": "system", "content": SYSTEM.format("\n".join(facts) or "(none found)")},
        {"role": "user", "content": question},
    ]


async def search(question: str) -> list[str]:
    """The keys of the documents that speak of what is asked."""
    await asyncio.sleep(SEARCH_S)
    return sorted(DOCUMENTS.keys() & set(re.findall(r"\w+", question.lower())))


async def is_cached(question: str) -> bool:
    """Whether the answer is known from before."""
    await asyncio.sleep(CACHE_S)
    return question in ANSWERED


async def fetch(key: str) -> str:
    """One document."""
    await asyncio.sleep(FETCH_S)
    return DOCUMENTS[key]
