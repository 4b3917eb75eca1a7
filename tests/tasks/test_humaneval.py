from pathlib import Path

import pytest

from trimtab.tasks.humaneval import problems, right
from trimtab.tasks.problem import records

FILE = Path(__file__).parents[2] / "bench" / "data" / "humaneval_100.jsonl"


@pytest.fixture(scope="module")
def some() -> list[dict[str, str]]:
    return records(FILE)[::9]


def test_canonical_solutions_pass_also_before_a_closing_fence(some: list[dict[str, str]]) -> None:
    for record in some:
        assert right(record, record["canonical_solution"]), record["task_id"]
        assert right(record, f"{record['canonical_solution']}\n```\nThat is it: def")


def test_a_body_that_does_nothing_fails(some: list[dict[str, str]]) -> None:
    for record in some:
        assert not right(record, "    return None\n"), record["task_id"]


def test_the_reply_begins_with_the_function(some: list[dict[str, str]]) -> None:
    problem = problems(FILE)[0]
    assert problem.id == some[0]["task_id"]
    assert problem.reply == f"```python\n{some[0]['prompt']}"
    assert problem.right(some[0]["canonical_solution"])
