"""The group ``[nodestate]`` of nova.conf. The entry point ``oslo.config.opts`` adds it to sample configurations."""

from __future__ import annotations

from typing import Any, Final

from oslo_config import cfg

GROUP: Final = "nodestate"

OPTIONS: Final[list[Any]] = [
    cfg.StrOpt(
        "source",
        default="database",
        choices=[
            ("database", "Nova's own queries decide. nodestate is not asked."),
            ("compare", "Nova's own queries decide, and each answer is compared with nodestate's."),
            ("nodestate", "nodestate's views decide."),
        ],
        mutable=True,
        help="Where nova-scheduler takes host states from. A reload of nova-scheduler (SIGHUP) applies a change.",
    ),
    cfg.StrOpt(
        "on_stale",
        default="database",
        choices=[
            ("database", "Nova's own queries serve the request."),
            ("refuse", "The request fails: no valid host."),
        ],
        mutable=True,
        help="What happens to a request while source is nodestate and its views may not decide: the view or the mirror "
        "is older than max_age, a part of the view is missing, or more than silent_share of the services are silent.",
    ),
    cfg.FloatOpt(
        "max_age",
        default=10.0,
        min=0.1,
        mutable=True,
        help="Greatest age of the view, and of the mirror's last sign of life, in seconds. At most half of "
        "service_down_time is used.",
    ),
    cfg.FloatOpt(
        "silent_share",
        default=0.2,
        min=0.0,
        max=1.0,
        mutable=True,
        help="Greatest share of silent nova-compute services in a cell. A mirror that reads a replica which is behind, "
        "or has a wrong clock, sees all services silent at once. Services that are disabled or forced down do not "
        "count.",
    ),
    cfg.StrOpt(
        "config",
        default="",
        help="File with nodestate's settings, if Nova has one cell besides cell0. If it is empty, nodestate's default "
        "files and environment variables apply.",
    ),
    cfg.DictOpt(
        "cells",
        default={},
        help="By uuid of a Nova cell, the file with the settings of its nodestate cell: uuid:path,uuid:path. Needed if "
        "Nova has several cells. Environment variables do not apply to these files. Requests that need a cell which is "
        "not named here are served from the database.",
    ),
    cfg.StrOpt(
        "mirror_user",
        default="",
        help="User with which nodestate-nova-mirror connects to the cells' databases. It needs the right to SELECT "
        "from compute_nodes, services and instances. If it is empty, the user of the cell mapping is used.",
    ),
    cfg.StrOpt("mirror_password", default="", secret=True, help="Password of mirror_user."),
]


def register(conf: Any) -> None:
    """Register the group in Nova's configuration. May be called again."""
    conf.register_opts(OPTIONS, group=GROUP)


def list_opts() -> list[tuple[str, list[Any]]]:
    """Return the group with its options, for oslo-config-generator."""
    return [(GROUP, OPTIONS)]
