"""The sequence in which a process tries the URLs of its broker: the nodes of a cluster, separated by semicolons.

first: the URL that answered last --its session broke or failed--> first: the URL after it

A frozen node accepts connections and answers nothing, so each attempt to use it takes ``broker_timeout_s``. A node that
was cut off from the other nodes of its cluster even answers, but declares and confirms nothing. A process that began
each time with the first URL would go back to such a node for ever. So it goes on with the next URL.

All sessions of a process share the sequence.
"""

from __future__ import annotations

from typing import Final

_first: Final[dict[str, str]] = {}
"""The URL to try first, by the setting ``broker``."""


def urls_in_sequence(broker: str) -> list[str]:
    """Return the URLs of the setting ``broker``, beginning with the one to try first."""
    urls = [url.strip() for url in broker.split(";")]
    first = _first.get(broker)
    at = urls.index(first) if first in urls else 0
    return urls[at:] + urls[:at]


def url_answered(broker: str, url: str) -> None:
    """Try this URL first from now on."""
    _first[broker] = url


def url_failed(broker: str, url: str) -> None:
    """Try the URL after this one first from now on, unless another one has become the first meanwhile."""
    urls = urls_in_sequence(broker)
    if urls[0] == url:
        _first[broker] = urls[1 % len(urls)]
