"""Write the settings of this machine's pip into a file, and print the mounts that it needs: ``pip_settings.py FILE``.

The mounts are options of systemd-nspawn for the local files and folders that the settings name.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def settings() -> dict[str, str]:
    """Return pip's settings for all commands, from its files and from the environment."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - pip of this Python
    found = re.findall(r"^(?:global|:env:)\.([\w-]+)=(.*)$", done.stdout, re.MULTILINE)
    return {name: ast.literal_eval(value) for name, value in found}


def local_paths(values: list[str]) -> Iterator[str]:
    """Yield the files and folders of this machine in some values. The bundle of certificates is copied instead."""
    for word in " ".join(values).split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists() and not path.is_relative_to("/etc/ssl"):
            # The pages of a local index link to files beside its folder.
            yield str(path.parent if word.startswith("file://") else path)


if __name__ == "__main__":
    given = settings()
    lines = [f"{name} = {' '.join(value.split())}\n" for name, value in given.items()]
    Path(sys.argv[1]).write_text("[global]\n" + "".join(lines), encoding="utf-8")
    for found_path in local_paths(list(given.values())):
        print(f"--bind-ro={found_path}")
