"""Every sentence of pages and reports has its Chinese, and every Chinese one is used."""

from __future__ import annotations

import ast
import json
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.core import UsageError
from reports.language import LOCALE, as_language, catalog, say, verdict_word

ROOT = Path(__file__).resolve().parents[2]


def _literals(node: ast.expr) -> Iterator[str | None]:
    """The texts that an argument can be; None for one that is no literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _literals(node.body)
        yield from _literals(node.orelse)
    else:
        yield None


def _calls(path: Path) -> Iterator[tuple[str | None, int]]:
    """(template, line) of every call of `say` and of every method `say` in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        place = 1 if isinstance(node.func, ast.Name) and node.func.id == "say" else 0
        method = isinstance(node.func, ast.Attribute) and node.func.attr == "say"
        if (place or method) and len(node.args) > place:
            for found in _literals(node.args[place]):
                yield found, node.lineno


def _axis_docs() -> Iterator[tuple[str, str]]:
    """(doc, where the front door says it) of each axis that this project declares; plugins bring their own words."""
    for folder in ("harness", "minimind", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "axis":
                    docs = [one.value for one in node.keywords if one.arg == "doc"]
                    for text in (text for doc in docs for text in _literals(doc) if text is not None):
                        yield text, f"dashboard/front_door.py, an axis of {path.name}:{node.lineno}"


def _said() -> dict[str, str]:
    """Template -> where it is said."""
    found = {}
    for folder in ("reports", "dashboard"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for template, line in _calls(path):
                if template is not None:
                    found[template] = f"{path.relative_to(ROOT)}:{line}"
    return found | dict(_axis_docs())


@pytest.mark.parametrize("folder", ["reports", "dashboard"])
def test_every_sentence_has_its_chinese(folder: str) -> None:
    said = _said().items()
    missing = {text: place for text, place in said if place.startswith(folder) and text not in catalog("zh")}
    assert not missing, "add these to reports/locale/zh/*.json: " + json.dumps(missing, ensure_ascii=False, indent=1)


def test_every_entry_is_used() -> None:
    said = _said()
    idle = {
        path.name: [text for text in json.loads(path.read_text(encoding="utf-8")) if text not in said]
        for path in sorted((LOCALE / "zh").glob("*.json"))
    }
    assert not any(idle.values()), f"nobody says these: {idle}"


def test_a_text_has_one_chinese_in_all_files() -> None:
    """A word with two meanings needs two English texts: the files are merged, and one would win."""
    found: dict[str, set[str]] = {}
    for path in sorted((LOCALE / "zh").glob("*.json")):
        for english, chinese in json.loads(path.read_text(encoding="utf-8")).items():
            found.setdefault(english, set()).add(chinese)
    assert not {english: texts for english, texts in found.items() if len(texts) > 1}


def _fields(template: str) -> list[str]:
    return sorted(f"{name}:{spec}" for _, name, spec, _ in string.Formatter().parse(template) if name is not None)


def test_translations_hold_the_same_values() -> None:
    for english, chinese in catalog("zh").items():
        assert _fields(english) == _fields(chinese), english


def test_templates_are_literals() -> None:
    through = {"reports/language.py", "dashboard/context.py"}  # where `say` itself is made
    for folder in ("reports", "dashboard"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if str(path.relative_to(ROOT)) not in through:
                computed = [line for template, line in _calls(path) if template is None]
                assert not computed, f"{path}: a computed template in lines {computed} has no Chinese"


def test_say_fills_in_values_in_both_languages() -> None:
    assert say("en", "{count} unchanged", count=3) == "3 unchanged"
    assert say("zh", "{count} unchanged", count=3) == "3 个不变"


def test_a_missing_word_is_shown_in_english() -> None:
    assert say("zh", "never said anywhere: {x}", x=1) == "never said anywhere: 1"


def test_values_are_not_templates() -> None:
    assert say("en", "{name} against {reference}", name="{x}", reference="{0}") == "{x} against {0}"


def test_verdicts_have_the_glossary_words() -> None:
    assert [verdict_word("en", v) for v in ("improved", "invalid")] == ["improved", "invalid"]
    assert verdict_word("zh", "regressed") == "退化"


def test_an_unknown_language_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown language 'fr'. Known: en, zh"):
        as_language("fr")
