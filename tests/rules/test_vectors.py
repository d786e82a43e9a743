"""A vector for each text, in the shape in which the texts were given."""

from __future__ import annotations

from typing import Any

import pytest

from llmbatch.records import Failure, Reply, Request, Usage
from llmbatch.rules.vectors import as_asked

ONE, TWO = [0.5, -0.5], [0.25, 1.0]


def outcome(asked: Any, output: Any, *, body: bool = False) -> Reply | Failure:
    request = Request("m", body={"input": asked}, api="openai-embeddings") if body else Request("m", input=asked)
    return as_asked(Reply(output, None, "m", Usage(3, 0)), request)


@pytest.mark.parametrize("body", [False, True])
@pytest.mark.parametrize(
    ("asked", "answered", "output"),
    [
        ("a", ONE, ONE),
        ("a", [ONE], ONE),
        (["a"], ONE, [ONE]),
        (["a"], [ONE], [ONE]),
        (["a", "b"], [ONE, TWO], [ONE, TWO]),
        ([1, 2, 3], ONE, ONE),
        ([[1, 2], [3]], [ONE, TWO], [ONE, TWO]),
        (None, ONE, ONE),
    ],
)
def test_a_vector_for_each_text(asked: Any, answered: Any, output: Any, body: bool) -> None:
    found = outcome(asked, answered, body=body)
    assert isinstance(found, Reply) and found.output == output


@pytest.mark.parametrize(
    ("asked", "answered"), [("a", [ONE, TWO]), (["a", "b"], ONE), (["a", "b", "c"], [ONE, TWO]), (["a"], [ONE, TWO])]
)
def test_another_number_of_vectors_is_no_answer(asked: Any, answered: Any) -> None:
    found = outcome(asked, answered)
    assert isinstance(found, Failure)
    assert (found.kind, found.type, found.retryable, found.usage) == ("unusable", "bad_answer", True, Usage(3, 0))
    assert "vectors for" in found.message
