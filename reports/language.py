"""The words of pages and reports in English and Chinese: the English template is the key.

    say("en", "{n} cases improved", n=3)      # "3 cases improved"
    say("zh", "{n} cases improved", n=3)      # from reports/locale/zh/*.json; English where a word is missing there

Names of options, metrics and commands (`norm=triton`, `ttft`) are the same in every language and come in as values. A
template is a literal at its call, so that a test can compare the calls with the catalogs. Refuses nothing: a template
that the catalogs lack is shown in English.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from harness.core import UsageError, VerdictName

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
NAMES: dict[Language, str] = {"en": "English", "zh": "中文"}  # each in its own words, for the control that switches
LOCALE = Path(__file__).parent / "locale"


def say(language: Language, template: str, /, **values: Any) -> str:
    """The template in a language, with its values filled in as by `str.format`.

    Source: the catalogs LOCALE/<language>/*.json, each a flat mapping from English to the language. Raises KeyError for
    a value that the template names and the call lacks.
    """
    found = template if language == "en" else catalog(language).get(template, template)
    return found.format(**values) if values or "{{" in found else found


def say_doc(language: Language, doc: str) -> str:
    """What a registered axis says of itself, in a language; English where the catalogs lack it."""
    return doc if language == "en" else catalog(language).get(doc, doc)


@lru_cache(maxsize=len(LANGUAGES))
def catalog(language: Language) -> Mapping[str, str]:
    """All entries of a language, from every file of its folder."""
    merged: dict[str, str] = {}
    for path in sorted((LOCALE / language).glob("*.json")):
        merged |= json.loads(path.read_text(encoding="utf-8"))
    return merged


def as_language(text: str) -> Language:
    """The language that a text names. Raises UsageError naming the known ones."""
    for language in LANGUAGES:
        if text == language:
            return language
    raise UsageError(f"unknown language '{text}'. Known: {', '.join(LANGUAGES)}")


def verdict_word(language: Language, verdict: VerdictName) -> str:
    """The word of a verdict as the glossary has it."""
    words: dict[VerdictName, str] = {
        "improved": say(language, "improved"),
        "regressed": say(language, "regressed"),
        "equivalent": say(language, "equivalent"),
        "inconclusive": say(language, "inconclusive"),
        "invalid": say(language, "invalid"),
    }
    return words[verdict]
