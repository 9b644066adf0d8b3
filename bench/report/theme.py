"""The colours of the page and of the plots. Designs differ in lightness, too, so they are distinct in grey."""

from __future__ import annotations

from typing import Final

LIGHT: Final = {
    "paper": "#ffffff",
    "card": "#f6f8fa",
    "ink": "#1f2328",
    "muted": "#59636e",
    "grid": "#dde2e8",
    "journal": "#0550ae",
    "snapshot": "#d4700b",
    "sql": "#57606a",
    "sqlite": "#57606a",
    "mariadb": "#8250df",
    "postgres": "#bf3989",
    "bare": "#8c959f",
    "other": "#1a7f6b",
}
DARK: Final = {
    "paper": "#0d1117",
    "card": "#161b22",
    "ink": "#e6edf3",
    "muted": "#9198a1",
    "grid": "#2b323b",
    "journal": "#6cb0ff",
    "snapshot": "#ffab57",
    "sql": "#b1bac4",
    "sqlite": "#b1bac4",
    "mariadb": "#d2a8ff",
    "postgres": "#ff9bce",
    "bare": "#7d8590",
    "other": "#56d4b5",
}
