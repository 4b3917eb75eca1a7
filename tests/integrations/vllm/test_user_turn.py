from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trimtab.integrations.transformers.embedded import embedded_directory
from trimtab.integrations.vllm.user_turn import UserTurn

TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n{% if loop.first %}{{ first }}{% endif %}"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "llama 2": "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.index0 == 1 and messages[0].role == 'system' %}<<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n"
    "{% endif %}{{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}",
    "words": "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}",
    "users only": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '### User\n' if m.role == 'user' else '### Bot\n' }}{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Bot\n{% endif %}",
}
TEXTS = ["Translate: the bus.", "Two lines:\n\n- a\n- b", "Ümlaut, 日本語, 🚌"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(embedded_directory("smollm2-135m"))


def ids(tokenizer: PreTrainedTokenizerBase, *turns: str, system: str | None = None) -> list[int]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    found: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return found


@pytest.mark.parametrize("name", [None, *TEMPLATES])
def test_the_last_user_turn_is_found(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    own = tokenizer.chat_template
    try:
        tokenizer.chat_template = own if name is None else TEMPLATES[name]
        turn = UserTurn(tokenizer)
        assert turn.header
        for text in TEXTS:
            assert turn.text(ids(tokenizer, text)) == text
            assert turn.text(ids(tokenizer, "Add 2 and 3.", "5", text)) == text
            if name != "users only":
                with_system = turn.text(ids(tokenizer, text, system="Be brief."))
                # these two write the system message into the user's turn
                assert with_system.endswith(text) if name in ("gemma", "llama 2") else with_system == text
    finally:
        tokenizer.chat_template = own


def test_a_template_of_the_servers_own(tokenizer: PreTrainedTokenizerBase) -> None:
    turn = UserTurn(tokenizer, TEMPLATES["words"])
    assert (turn.header, turn.footer) == ("User: ", "\nAssistant:")


@pytest.fixture(scope="module")
def learned(tokenizer: PreTrainedTokenizerBase) -> UserTurn:
    return UserTurn(tokenizer)


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["C"])).map(str.strip).filter(bool))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerBase, learned: UserTurn, text: str) -> None:
    expected = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip()
    assert learned.text(ids(tokenizer, text)) == expected


def test_a_prompt_without_template_is_read_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    turn = UserTurn(tokenizer)
    assert turn.text(tokenizer("Once upon a time")["input_ids"]) == "Once upon a time"
    assert turn.text([]) == ""


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}:{% endfor %}",  # learns ":", which users write
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_cannot_be_learned_leaves_the_whole(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    turn = UserTurn(tokenizer, template)
    assert turn.header == ""
    assert turn.text(tokenizer("Note: a bus")["input_ids"]) == "Note: a bus"


def test_an_empty_turn_is_not_passed_off_as_the_whole(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Nothing was said last: the text that there is decides, so that there is one."""
    assert "Be brief." in UserTurn(tokenizer).text(ids(tokenizer, "", system="Be brief."))
