"""Valid names of resource classes. The rule is the one of events, so an instance that a node reports can be asked for.

OpenStack's own classes follow this rule, and its custom classes, which begin with CUSTOM_.
"""

from __future__ import annotations

import difflib
import re
from typing import Final

import os_resource_classes

from nodestate.errors import BadRequestError
from nodestate.model import MAX_WORD_CHARS

_CLASS: Final = re.compile(rf"[A-Z0-9_]{{1,{MAX_WORD_CHARS}}}")


def check_class(field: str, name: str) -> None:
    """Check that ``name`` is a valid resource class.

    Raises ``BadRequestError`` if it is not. The error names ``field``, and the most similar class of OpenStack.

    Args:
        field: The field of the request that contains the name.
        name: The name to check.
    """
    if _CLASS.fullmatch(name):
        return
    close = difflib.get_close_matches(name[:MAX_WORD_CHARS].upper(), os_resource_classes.STANDARDS, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise BadRequestError(
        field,
        f"{name!r:.80} is no resource class: use A to Z, 0 to 9 and _, at most {MAX_WORD_CHARS} of them{meant}",
    )
