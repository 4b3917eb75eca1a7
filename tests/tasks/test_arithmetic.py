import json
from pathlib import Path

import pytest

from trimtab import InputError
from trimtab.tasks.arithmetic import gsm8k, number, right, svamp

SVAMP = Path(__file__).parents[2] / "bench" / "data" / "svamp_200.jsonl"


@pytest.mark.parametrize(
    ("expected", "written", "found"),
    [
        (51, "76 - 25 = 51\nAnswer: 51", True),
        (51, "76 - 25 = 51\nAnswer: 51.00 dollars in 2 packs", True),
        (51, "Answer: 25\nNo, wrong.\nAnswer: 51", True),
        (51, "It is 51", True),
        (51, "It is 51 and not 25", False),
        (51, "Answer: it is 52", False),
        (51, "Answer: fifty-one", False),
        (1234.5, "Answer: $1,234.50", True),
        (-3, "Answer: -3", True),
        (3, "", False),
    ],
)
def test_right_reads_the_number_after_the_last_answer(expected: float, written: str, found: bool) -> None:
    assert right(expected, written) is found


def test_number_takes_thousands() -> None:
    assert number("from 1,000 to 2,500.5", first=True) == 1000
    assert number("from 1,000 to 2,500.5", first=False) == 2500.5
    assert number("none", first=True) is None


def test_svamp_marks_its_own_answers() -> None:
    found = svamp(SVAMP)
    answers = [json.loads(line)["Answer"] for line in SVAMP.read_text().splitlines()]
    assert len(found) == len(answers) == 200
    for problem, answer in zip(found, answers, strict=True):
        assert problem.right(f"So.\nAnswer: {answer}")
        assert not problem.right(f"So.\nAnswer: {answer + 1}")


def test_gsm8k_takes_what_follows_the_hashes(tmp_path: Path) -> None:
    file = tmp_path / "gsm8k.jsonl"
    file.write_text(json.dumps({"question": "How much?", "answer": "2 * 600 = 1200\n#### 1,200"}) + "\n")
    (problem,) = gsm8k(file)
    assert problem.right("Answer: 1200")
    assert "How much?" in problem.message


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gsm8k.jsonl"
    file.write_text('{"question": "a", "answer": "#### 1"}\n{"question": \n')
    with pytest.raises(InputError, match=r"gsm8k\.jsonl', line 2 is not JSON"):
        gsm8k(file)
