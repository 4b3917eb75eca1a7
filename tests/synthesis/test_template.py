from __future__ import annotations

import pytest

from trimtab import InputError
from trimtab.synthesis.template import Template

SEEDS = [{"text": "a", "label": "good", "stars": 4}, {"text": "b", "label": "bad"}]


def test_prompts_come_from_the_fields() -> None:
    template = Template("A {{ label }} review{% if stars is defined %} of {{ stars }} stars{% endif %}:\n")
    assert template.prompts(SEEDS) == ["A good review of 4 stars:", "A bad review:"]
    assert template.used(SEEDS[1]) == {"label": "bad"}
    assert template.used(SEEDS[0]) == {"label": "good", "stars": 4}
    assert Template("No field at all.").prompts(SEEDS) == ["No field at all."] * 2


def test_text_is_not_escaped_or_run() -> None:
    assert Template("{{ text }}").prompts([{"text": "<b> {{ label }}"}]) == ["<b> {{ label }}"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ lable }}", "names 'lable', which no seed has: did you mean 'label'"),
        ("{{ zzz }}", "names 'zzz', which no seed has: the seeds have label, stars, text"),
        ("{{ stars }}", "filled from seed 1 .*'stars' is undefined"),
        ("{% if label == 'good' %}x{% endif %}", "empty prompt for seed 1"),
        ("{{ text.__class__.__mro__ }}", "filled from seed 0 .*unsafe"),
    ],
)
def test_bad_fields_are_refused(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Template(source).prompts(SEEDS)


def test_bad_syntax_is_refused() -> None:
    with pytest.raises(InputError, match="is not Jinja2"):
        Template("{{ label")
