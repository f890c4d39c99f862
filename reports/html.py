"""A report as one self-contained HTML file: works without scripts and network, prints well, light and dark.

    Path("run.html").write_text(to_html(document), encoding="utf-8")

Every text is escaped by the template (autoescape is on for everything); the only markup that goes in as it is are the
SVG drawings, which `reports.drawing` makes and escapes. Refuses nothing. Torch-free.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from harness.tables import GLYPHS
from reports.document import Document, Picture
from reports.drawing import to_svg
from reports.language import say
from reports.markdown import missing_text, synthetic_note

if TYPE_CHECKING:
    from jinja2 import Template

_CODES = {"en": "en", "zh": "zh-Hans"}


def to_html(document: Document) -> str:
    """The whole report, details included."""
    language = document.language

    return _template().render(
        document=document,
        code=_CODES[language],
        glyphs={verdict: text.split(" ")[0] for verdict, text in GLYPHS.items()},
        drawings=_drawings,
        kind=lambda block: type(block).__name__,
        missing=lambda block: missing_text(block.what, block.command, language),
        synthetic=synthetic_note(language),
        labels={
            "data": say(language, "Numbers of this figure"),
            "problems": say(language, "Files that could not be read"),
            "contents": say(language, "Contents"),
            "made": say(language, "Made with"),
            "query": say(language, "The same in the dashboard"),
        },
    )


def _drawings(picture: Picture) -> dict[str, Any]:
    """The picture in both schemes, as markup: drawn by us, escaped there."""
    from markupsafe import Markup

    return {scheme: Markup(to_svg(picture.figure, scheme=scheme)) for scheme in ("light", "dark")}


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
