"""The settings as texts: the default, the possible values and the meaning of each.

``nodestate config sample`` and docs/reference/settings.md are made from it.
"""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from nodestate import config
from nodestate.config import SECRET_SETTINGS, Config
from nodestate.setting_values import allowed_values


class SettingDoc(NamedTuple):
    """One setting."""

    name: str
    """Its name, as in a TOML file."""
    default: Any
    """Its default: a text, a number or a tuple of texts."""
    kind: msgspec.inspect.Type
    """Its type, with the range of its values."""
    meaning: str
    """One or more sentences."""

    @property
    def allowed(self) -> str:
        """The values that it can have, as text."""
        return allowed_values(self.kind)

    @property
    def has_file(self) -> bool:
        """True if the setting with ``_file`` appended names a file that has the value."""
        return self.name in SECRET_SETTINGS


def setting_docs() -> list[SettingDoc]:
    """Return all settings, in the order in which ``Config`` has them."""
    meanings = _field_docstrings(inspect.getsource(config), "Config")
    kinds = {field.name: field.type for field in msgspec.inspect.type_info(Config).fields}  # type: ignore[attr-defined]  # of a struct
    return [
        SettingDoc(name, default, kinds[name], meanings[name])
        for name, default in zip(Config.__struct_fields__, Config.__struct_defaults__, strict=True)
    ]


def _field_docstrings(source: str, class_name: str) -> dict[str, str]:
    """Return the docstring of each field of a class: the string below the field."""
    body = next(
        node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    said: dict[str, str] = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            said[field.target.id] = " ".join(str(below.value.value).split())
    return said
