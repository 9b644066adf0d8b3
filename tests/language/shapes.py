"""Find sentence shapes that technical English does not use, in everything that a person reads.

Read are docstrings, comments, help texts, error messages and Markdown. A hit is a place to look: the sentence is to be
rewritten, not the pattern to be dodged. The number of hits in each folder has a budget (``budget.toml``) that may only
fall. To see the hits of a folder::

    python -m tests.language nodestate/agent

and to lower the budget to the present number of hits::

    python -m tests.language --lower
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
SUFFIXES: Final = (".py", ".md")
_PRONOUN_PLACE: Final = r"(?:^|(?<=[.;:,(] )|(?<=\bto )|(?<=\bof )|(?<=\bfor )|(?<=\bby )|(?<=\bbut )|(?<=\band ))"
_WHAT_VERBS: Final = (
    "is|was|are|were|it|the|a|an|others|another|nobody|somebody|they|one|comes|came|has|had|did|fits|failed|gets|goes"
    "|counts|costs|follows|nodes|agents|schedulers|does|may|must|can|there|no|some"
)
SHAPES: Final[dict[str, str]] = {
    # `who loses it looks again`: the subject of a sentence is a noun
    "clause with who": _PRONOUN_PLACE + r"(?:[Ww]ho|[Ww]hoever)\b",
    # `what is stored counts`: the subject of a sentence is a noun
    "clause with what": rf"(?:(?:^|[.;:(] )What (?!happens\b|to\b|if\b)|(?<=[a-z,] )what (?:{_WHAT_VERBS})\b)",
    # `None, where there is none`: a condition begins with if, when or unless
    "where for if": r"(?:,| None| False| True|Raises?\b[^.]{0,40}) where (?!to\b)",
    # `for so long`, `so many`: name the number or the limit
    "so many": r"\b(?:so many|so long|for so\b|so lately|so often)\b(?! (?:as|that))",
    # `nobody reads it`: name the process that does not
    "nobody": r"\b(?:[Nn]obody|[Ss]omebody|[Ee]verybody|[Aa]nybody)\b",
    # `not there yet` is fine; `who has it yet` is not
    "yet and anew": r"(?<!not )(?<!Not )\b(?:yet|anew|any more)\b(?!,)",
    # `those that were`: name the things
    "those that": r"\bthose (?:that|of|which|who|in)\b",
}
_COMPILED: Final = {name: re.compile(pattern) for name, pattern in SHAPES.items()}
_MESSAGE_CALLS: Final = frozenset(
    {"fail", "echo", "secho", "option", "argument", "command", "group", "Option", "Argument"}
)
_HELP_WORDS: Final = frozenset(
    {"help", "short_help", "epilog", "message", "detail", "remedy", "reason", "advice", "first"}
)


class Text(NamedTuple):
    """One text that a person reads, and where it begins."""

    path: Path
    line: int
    text: str


class Hit(NamedTuple):
    """One sentence shape, in its surroundings."""

    path: Path
    line: int
    shape: str
    excerpt: str


def files_of(place: Path) -> list[Path]:
    """The Python and Markdown files of a folder, or the file itself."""
    if place.is_file():
        return [place]
    return sorted(path for path in place.rglob("*") if path.suffix in SUFFIXES and "__pycache__" not in path.parts)


def texts_of(path: Path) -> Iterator[Text]:
    """Everything in a file that a person reads."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from (Text(path, line, text) for line, text in _paragraphs(source))
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield Text(path, node.lineno, node.value.value)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from (Text(path, part.lineno, text) for part in node.exc.args if (text := _literal(part)))
            yield from (Text(path, node.lineno, text) for word in node.exc.keywords if (text := _literal(word.value)))
        elif isinstance(node, ast.Call):
            yield from _call_texts(path, node)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and "noqa" not in token.string and "type:" not in token.string:
            yield Text(path, token.start[0], token.string.lstrip("# "))


def _call_texts(path: Path, node: ast.Call) -> Iterator[Text]:
    """Help texts and messages that are passed to a call."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in _MESSAGE_CALLS or name.endswith("Error"):
        yield from (Text(path, part.lineno, text) for part in node.args if (text := _literal(part)) and " " in text)
    for word in node.keywords:
        if word.arg in _HELP_WORDS and (text := _literal(word.value)):
            yield Text(path, word.value.lineno, text)


def _literal(node: ast.expr) -> str:
    """The text of a literal; what an f-string fills in is shown as X."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _literal(node.left) + _literal(node.right)
    return ""


def _paragraphs(source: str) -> Iterator[tuple[int, str]]:
    """Paragraphs, list entries and table rows of Markdown outside its code blocks, each with its first line."""
    in_code = False
    begun, lines = 0, list[str]()
    for number, line in enumerate([*source.splitlines(), ""], 1):
        stripped = line.lstrip()
        if stripped.startswith("```"):
            in_code = not in_code
            stripped = ""
        elif in_code:
            continue
        starts = not stripped or stripped.startswith(("#", "|", "- ", "* ", ">")) or re.match(r"\d+\. ", stripped)
        if starts and lines:
            yield begun, " ".join(lines)
            lines = []
        if stripped:
            begun = begun if lines else number
            lines.append(stripped.lstrip("#>*-| "))


def words_and_hits(path: Path) -> tuple[int, list[Hit]]:
    """How many words a person reads in a file, and the shapes among them. Code in backticks counts as one word."""
    words, hits = 0, list[Hit]()
    for text in texts_of(path):
        prose = re.sub(r"``[^`]*``|`[^`]*`", "X", text.text)
        prose = "\n".join(row for row in prose.split("\n") if "-->" not in row and ">>>" not in row)
        prose = re.sub(r"\s+", " ", prose).strip()
        words += len(prose.split())
        for shape, pattern in _COMPILED.items():
            for match in pattern.finditer(prose):
                excerpt = prose[max(0, match.start() - 40) : match.end() + 40]
                hits.append(Hit(path, text.line, shape, excerpt))
    return words, hits
