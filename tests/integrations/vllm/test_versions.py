import logging
import re

import pytest

from trimtab.errors import InputError
from trimtab.integrations.vllm import versions


@pytest.mark.parametrize(
    ("found", "expected"),
    [("0.32.0", True), ("0.32.1rc1", True), ("0.31.0", True), ("0.3.2", False), ("0.33.0", False), (None, False)],
)
def test_a_release_is_supported_by_its_minor_version(found, expected):
    assert versions.supported(found) is expected


def test_a_method_on_another_release_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda: "0.40.1")
    with pytest.raises(InputError, match=r"logit fusion needs vLLM .* found 0\.40\.1: install vllm=="):
        versions.require("logit fusion")


def test_a_method_needs_what_was_tested_on_the_release(monkeypatch):
    tested = {"0.30": ("V1",), "0.31": ("V1", "ead"), "0.32": ("V1", "V2", "ead")}
    monkeypatch.setattr(versions, "TESTED", tested)
    for release, parts in tested.items():
        monkeypatch.setattr(versions, "installed", lambda release=release: f"{release}.1")
        versions.require("a method", *parts)
        for part in {"V1", "V2", "ead"} - set(parts):
            with pytest.raises(InputError, match=rf"a method.* needs vLLM .*0\.32\.x, found {release}"):
                versions.require("a method", "V1", part)


def test_what_is_missing_is_told_with_the_releases_that_have_it(monkeypatch):
    monkeypatch.setattr(versions, "TESTED", {"0.30": ("V1",), "0.31": ("V1", "ead"), "0.32": ("V1", "V2", "ead")})
    monkeypatch.setattr(versions, "installed", lambda: "0.30.0")
    for parts, message in [
        (("ead", "V1"), "EAD on model runner V1 needs vLLM 0.31.x or 0.32.x, found 0.30.0: install vllm==0.32.*"),
        (("V2",), "EAD on model runner V2 needs vLLM 0.32.x, found 0.30.0: install vllm==0.32.*"),
        (("ead",), "EAD needs vLLM 0.31.x or 0.32.x, found 0.30.0: install vllm==0.32.*"),
    ]:
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            versions.require("EAD", *parts)


def test_another_release_is_warned_of_once(monkeypatch, caplog):
    monkeypatch.setattr(versions, "installed", lambda: "0.40.1")
    versions.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        versions.warn_once()
        versions.warn_once()
    versions.warn_once.cache_clear()
    assert [record.message for record in caplog.records] == [
        "trimtab was tested with vLLM 0.31.x or 0.32.x, not with 0.40.1: its methods are switched off"
    ]


def test_a_process_without_vllm_hears_nothing(monkeypatch, caplog):
    monkeypatch.setattr(versions, "installed", lambda: None)
    versions.warn_once.cache_clear()
    versions.warn_once()
    versions.warn_once.cache_clear()
    assert not caplog.records
