"""Rewrites the SVG of matplotlib in a fraction of its size: one element on a line, each style once, no groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

from bench.report.theme import DARK, LIGHT

STAND_INS: Final = {name: f"#0101{number:02x}" for number, name in enumerate(LIGHT, 16)}
"""A colour that matplotlib draws with, for each colour of the theme."""
FONT: Final = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif"
SVG: Final = "{http://www.w3.org/2000/svg}"
LINK: Final = "{http://www.w3.org/1999/xlink}href"
_COMMON: Final = ("font-size: 10px", "font-family: 'DejaVu Sans'", "stroke-linecap: butt", "stroke-linejoin: round")
"""Styles that stand once for the whole picture."""


def compact_svg(written: str, caption: str) -> str:
    """Return the picture that matplotlib has written, with the theme's colours as variables and a caption.

    Groups, invisible shapes and names are dropped. Coordinates are rounded to a tenth of a point, and equal styles
    become one class of the style sheet.
    """
    root = ET.fromstring(written)  # noqa: S314 - written by matplotlib in this process
    classes: dict[str, str] = {}
    names: dict[str, str] = {}
    lines = [line for element in root for line in _elements(element, classes, names)]
    rules = "".join(f".{name}{{{style}}}" for style, name in classes.items())
    style = (
        f"svg{{font:10px {FONT};stroke-linejoin:round;background:var(--paper);{_variables(LIGHT)}}}\n"
        f"@media(prefers-color-scheme:dark){{svg{{{_variables(DARK)}}}}}\n{rules}"
    )
    size = " ".join(f"{name}={quoteattr(root.attrib[name])}" for name in ("width", "height", "viewBox"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>'
    return "\n".join([head, f"<title>{escape(caption)}</title>", f"<style>{style}</style>", *lines, "</svg>"]) + "\n"


def _elements(element: ET.Element, classes: dict[str, str], names: dict[str, str]) -> Iterator[str]:
    """Yield the visible elements within an element, each as one line."""
    tag = element.tag.removeprefix(SVG)
    if tag in {"metadata", "style"}:
        return
    if tag in {"g", "defs"}:
        inner = [line for child in element for line in _elements(child, classes, names)]
        clip = element.get("clip-path")
        if tag == "defs" and inner:
            yield f"<defs>{''.join(inner)}</defs>"
        elif clip and inner:
            yield f"<g clip-path={quoteattr(_reference(clip, names))}>{''.join(inner)}</g>"
        else:
            yield from inner
        return
    if tag == "clipPath":
        inner = [line for child in element for line in _elements(child, classes, names)]
        yield f"<clipPath id={quoteattr(_name(element.attrib['id'], names))}>{''.join(inner)}</clipPath>"
        return
    style = element.get("style", "")
    if tag == "path" and "fill: none" in style and "stroke: " not in style:
        return
    attributes = dict(_attributes(element, tag, names))
    short = _short_style(style)
    if short:
        attributes["class"] = classes.setdefault(short, f"s{len(classes)}")
    text = escape(element.text or "") if tag == "text" else ""
    written = "".join(f" {name}={quoteattr(value)}" for name, value in attributes.items())
    yield f"<{tag}{written}>{text}</{tag}>" if text else f"<{tag}{written}/>"


def _attributes(element: ET.Element, tag: str, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in element.attrib.items():
        if name == "id" and tag == "path":
            yield "id", _name(value, names)
        elif name == "clip-path":
            yield name, _reference(value, names)
        elif name == LINK:
            yield "href", f"#{_name(value.removeprefix('#'), names)}"
        elif name == "d":
            yield name, _rounded(re.sub(r"\s*\n\s*", "", re.sub(r"([MLCQHVz]) ", r"\1", value.strip())))
        elif name in {"x", "y", "width", "height"} or (name == "transform" and "rotate(-0 " not in value):
            yield name, _rounded(value)


def _rounded(text: str) -> str:
    """Round every fraction in a text to a tenth."""
    return re.sub(r"-?\d+\.\d+", lambda number: f"{round(float(number[0]), 1) or 0:g}", text)


def _short_style(style: str) -> str:
    parts = [part.strip() for part in style.split(";")]
    short = ";".join(part.replace(": ", ":") for part in parts if part and part not in _COMMON)
    for variable, stand_in in STAND_INS.items():
        short = short.replace(stand_in, f"var(--{variable})")
    return short


def _name(name: str, names: dict[str, str]) -> str:
    """Return a short name for an id of matplotlib's."""
    return names.setdefault(name, f"n{len(names)}")


def _reference(url: str, names: dict[str, str]) -> str:
    return f"url(#{_name(url.removeprefix('url(#').removesuffix(')'), names)})"


def _variables(theme: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in theme.items())
