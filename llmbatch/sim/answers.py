"""What the simulated model says: a text that names its prompt, so that an answer given to the wrong row shows."""

from __future__ import annotations

import hashlib
import math
import random

# The vendors' rule of thumb for English text.
CHARS_PER_TOKEN = 4
# Enough of the prompt to recognise it; an echo of a long document would only cost bandwidth.
ECHO_CHARS = 200


def prompt_hash(prompt_text: str) -> str:
    """Sixteen hex digits that stand for a prompt in answers and in the ledger."""
    return hashlib.blake2b(prompt_text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def count_tokens(text: str) -> int:
    """Tokens of a text, at four characters each, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def expected_answer(prompt_text: str, output_tokens: int | None = None, images: int = 0) -> str:
    """The whole answer to a prompt (its last user message): the prompt's hash, its words, how many images it has.

    ``output_tokens`` repeats or cuts it to exactly that many tokens, as ``--output-tokens`` does. ``max_tokens`` cuts
    the same way: the first ``CHARS_PER_TOKEN`` characters for each token allowed.
    """
    text = f"{prompt_hash(prompt_text)} {' '.join(prompt_text[:ECHO_CHARS].split())}".rstrip()
    if images:
        text += f" [{images} image{'s' if images > 1 else ''}]"
    if output_tokens is None:
        return text
    chars = output_tokens * CHARS_PER_TOKEN
    repeats = chars // (len(text) + 1) + 1
    return (f"{text} " * repeats)[:chars]


def expected_vector(text: str, dimensions: int) -> list[float]:
    """The embedding of a text: ``dimensions`` numbers of length 1 together, and different for every text."""
    chance = random.Random(prompt_hash(text))
    numbers = [chance.uniform(-1, 1) for _ in range(dimensions)]
    length = math.hypot(*numbers)
    return [number / length for number in numbers]
