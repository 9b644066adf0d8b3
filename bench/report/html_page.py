"""Renders the Markdown of the page as one HTML file that needs nothing else. The only importer of markdown-it.

A plot becomes a picture within the page, which stays light or dark as its reader prefers.
"""

from __future__ import annotations

import itertools
import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

from bench.report.theme import DARK, LIGHT

_STYLE: Final = """\
:root { color-scheme: light dark; %(light)s }
@media (prefers-color-scheme: dark) { :root { %(dark)s } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 2rem; margin: 0; }
h2 { font-size: 1.3rem; margin: 3rem 0 .3rem; padding-top: 1.2rem; border-top: 1px solid var(--grid); }
nav a { margin-right: .9rem; white-space: nowrap; }
a { color: var(--journal); }
blockquote { border-left: 4px solid var(--snapshot); background: var(--card); margin: .6rem 0; padding: .1rem 1rem; }
#the-answer + ol { background: var(--card); border-left: 5px solid var(--other); padding: 1rem 1.4rem 1rem 2.4rem; }
#the-answer + ol li { margin: .5rem 0; }
code { font: .86em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--card); overflow-wrap: anywhere; }
img { width: 100%%; height: auto; }
table { display: block; overflow-x: auto; border-collapse: collapse; margin: 1rem 0; font-size: .92rem; }
th, td { padding: .38rem .7rem; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { color: var(--muted); }
summary { cursor: pointer; color: var(--muted); }"""


def html_of(markdown: str, plots: Mapping[str, str]) -> str:
    """Return the page as HTML. ``plots`` has the SVG of each plot by the link that the Markdown names."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = parser.parse(markdown)
    headings = _with_anchors(tokens)
    for token in (child for parent in tokens for child in parent.children or () if child.type == "image"):
        picture = b64encode(plots[str(token.attrs["src"])].encode()).decode()
        token.attrs["src"] = f"data:image/svg+xml;base64,{picture}"
    title = next(iter(headings.values()), "")
    links = " ".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in list(headings.items())[1:])
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace("</h1>\n", f"</h1>\n<nav>{links}</nav>\n", 1)
    style = _STYLE % {"light": _variables(LIGHT), "dark": _variables(DARK)}
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>nodestate: {title}</title>\n<style>\n{style}\n</style>\n</head>\n"
        f"<body><main>\n{body}</main></body>\n</html>\n"
    )


def _with_anchors(tokens: list[Token]) -> dict[str, str]:
    """Give each heading an id; return the texts of the headings by id, in their order."""
    headings: dict[str, str] = {}
    for token, content in itertools.pairwise(tokens):
        if token.type == "heading_open":
            anchor = re.sub(r"[^\w\- ]", "", content.content.lower()).replace(" ", "-")
            token.attrs["id"] = anchor
            headings[anchor] = content.content
    return headings


def _variables(theme: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in theme.items())
