"""The commands ``key …``: create, replace and revoke the keys of a cell and its nodes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

import click

from nodestate.auth.followed_file import REREAD_S
from nodestate.auth.key_file import encode_keys, locked_directories, read_cell_keys, read_keys, write_keys
from nodestate.auth.keys import KEY_ID_PATTERN, CellKeys, Secret
from nodestate.cli import operator_key
from nodestate.cli.command import Run, cell_command
from nodestate.cli.node_name import NODE
from nodestate.config import Config
from nodestate.errors import ConfigError
from nodestate.model import NODE_NAME_PATTERN
from nodestate.text import span_text

SHOWN_COUNT: Final = 20
"""Most nodes that are printed for people."""
_EXAMPLE_FILE = "--keys-file /etc/nodestate/cell.keys"


@click.group("key", epilog=f"\b\nExample:\n  nodestate key init {_EXAMPLE_FILE}")
def command() -> None:
    """Create, replace and revoke the keys of a cell and its nodes.

    --keys-file, or else the setting keys_file, names the file of the cell. Consumers and schedulers need a copy of it;
    the agent of a node needs the file that 'key node' writes. Processes read a changed file again within 5 s.

    To replace the secret of a cell: 'key rotate'; copy the file to all consumers and schedulers; write the keys of all
    nodes again with 'key node'; 'nodestate retag'; wait until doctor names no node that uses the old secret, and no
    allocation without a tag of the new one; 'key revoke' the old one, and copy the file again.

    With --operator, 'init', 'rotate' and 'revoke' are for the operators' key pair, which signs the control record. The
    settings operator_key_file and control_keys_file name its files.
    """


_OPERATOR_OPTION = click.option("--operator", is_flag=True, help="The operators' key pair, not a secret of the cell.")


def _keys_file(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--keys-file", metavar="FILE", help="File with the secrets of the cell.", show_default="NODESTATE_KEYS_FILE"
    )(function)


def _config(run: Run, keys_file: str | None) -> Config:
    """Return the settings. Raises ``ConfigError`` if they name no file of keys."""
    config = run.settings(keys_file=keys_file)
    if not config.keys_file:
        raise ConfigError(f"the settings name no file of keys: give {_EXAMPLE_FILE} (or NODESTATE_KEYS_FILE)")
    return config


@cell_command(
    "init", summary="Create the file with the secret of a cell.", example=f"nodestate key init {_EXAMPLE_FILE}"
)
@_keys_file
@_OPERATOR_OPTION
def init(run: Run, keys_file: str | None, operator: bool) -> None:
    """Create the file with the first secret of a cell. Only the file's owner can read it. An existing file stays.

    With --operator, creates the file of the operators' private key, and the file of its public key for all processes
    that follow the control record.
    """
    if operator:
        _print(run, *operator_key.init(run.config))
        return
    config = _config(run, keys_file)
    secret = Secret.new(time.time())
    with locked_directories(config.keys_file):
        write_keys(config.keys_file, CellKeys(cell=config.cell, secrets=(secret,)), replace=False)
    _print(
        run,
        {"file": config.keys_file, "cell": config.cell, "id": secret.id},
        f"wrote {config.keys_file}: secret {secret.id} of cell {config.cell}",
    )


@cell_command(
    "node",
    summary="Write the keys of a node, for its agent.",
    example=f"nodestate key node compute-0001 {_EXAMPLE_FILE} --out compute-0001.keys",
)
@click.argument("nodes", type=NODE, nargs=-1, required=True)
@click.option(
    "--out",
    metavar="FILE",
    help="Write the keys into this file, which only its owner can read.",
    show_default="print them on stdout",
)
@_keys_file
def node(run: Run, nodes: tuple[str, ...], out: str | None, keys_file: str | None) -> None:
    """Write the keys of NODES into a file for the agent that reports them. The file has no secret of the cell.

    Each node gets a key for each secret in force. The agent's setting keys_file names the file.
    """
    for name in nodes:
        if not re.fullmatch(NODE_NAME_PATTERN, name):
            raise click.UsageError(f"{name!r} cannot be the name of a node: give letters, digits and . _ : -")
    config = _config(run, keys_file)
    cell_keys = read_cell_keys(config.keys_file, config.cell)
    keys = cell_keys.node_keys(tuple(dict.fromkeys(nodes)))
    if out is None:
        click.echo(encode_keys(keys))
        return
    write_keys(out, keys, replace=True)
    ids = sorted({key.id for own in keys.nodes.values() for key in own})
    shown = ", ".join(nodes[:SHOWN_COUNT]) + (f" and {len(nodes) - SHOWN_COUNT:,} more" * (len(nodes) > SHOWN_COUNT))
    _print(run, {"file": out, "nodes": nodes, "ids": ids}, f"wrote {out}: keys of {shown}")


@cell_command(
    "rotate", summary="Add a secret that will replace the present one.", example=f"nodestate key rotate {_EXAMPLE_FILE}"
)
@_keys_file
@_OPERATOR_OPTION
def rotate(run: Run, keys_file: str | None, operator: bool) -> None:
    """Add a secret to the file of the cell. Both secrets are in force until 'key revoke' revokes the old one.

    Consumers and schedulers sign with the old secret until then, and nodes with the new one as soon as they have it. So
    no message is refused if consumers and schedulers get the file before nodes get their keys.

    With --operator, adds a key pair. Commands sign with the new key from now on, so copy the file of public keys to all
    processes before the next command 'design'.
    """
    if operator:
        _print(run, *operator_key.rotate(run.config))
        return
    config = _config(run, keys_file)
    with locked_directories(config.keys_file):
        keys = read_cell_keys(config.keys_file, config.cell).with_new_secret(time.time())
        write_keys(config.keys_file, keys, replace=True)
    old, new = (one.id for one in keys.secrets)
    _print(
        run,
        {"file": config.keys_file, "old": old, "new": new},
        f"added secret {new} to {config.keys_file}; secret {old} is in force until 'nodestate key revoke {old}'. Copy "
        "the file to consumers and schedulers, then write the keys of all nodes with 'nodestate key node', and renew "
        "the tags of allocations with 'nodestate retag'",
    )


@cell_command(
    "revoke",
    summary="Refuse the keys of a node or of a secret.",
    example=f"nodestate key revoke compute-0001 {_EXAMPLE_FILE}\nnodestate key revoke 0a1b2c3d {_EXAMPLE_FILE}",
)
@click.argument("name", metavar="NODE|ID")
@click.option("--node", "is_node", is_flag=True, help="NODE is a node, although its name has the form of an ID.")
@_keys_file
@_OPERATOR_OPTION
def revoke(run: Run, name: str, is_node: bool, keys_file: str | None, operator: bool) -> None:
    """Refuse the present keys of NODE, or all keys that follow from the secret ID.

    Copy the changed file to all consumers and schedulers: each of them refuses the keys within 5 s. A node gets new
    keys after 'key rotate'. The only secret in force cannot be revoked. A name of eight hexadecimal digits is an ID.

    With --operator, refuses the signatures of the operators' key ID. If this key signed the present control record, run
    'design sign' first.
    """
    if operator:
        _print(run, *operator_key.revoke(run.config, name))
        return
    config = _config(run, keys_file)
    now = time.time()
    with locked_directories(config.keys_file):
        keys = read_cell_keys(config.keys_file, config.cell)
        is_secret = not is_node and any(one.id == name for one in keys.secrets)
        if not is_secret:
            _require_node(name, keys, is_node=is_node)
        keys = keys.without_secret(name, now) if is_secret else keys.with_revoked_node(name, now)
        write_keys(config.keys_file, keys, replace=True)
    what = f"secret {name}" if is_secret else f"the present keys of node {name}"
    _print(
        run,
        {"file": config.keys_file, "id" if is_secret else "node": name, "within_s": REREAD_S},
        f"revoked {what}; copy {config.keys_file} to consumers and schedulers, which refuse them within {REREAD_S:g} s",
    )


@cell_command(
    "status", summary="Show the secrets in force and the revoked keys.", example="nodestate key status --json"
)
@_keys_file
def status(run: Run, keys_file: str | None) -> None:
    """Show the ids and ages of the secrets in force, and the revoked nodes and secrets. Secrets are never shown.

    If the file has the keys of nodes and no secrets, shows the ids of these keys. If the settings name the files of the
    operators' keys, shows the ids of those, too.
    """
    config, now = run.settings(keys_file=keys_file), time.time()
    answer, lines = operator_key.status(config, now)
    if config.keys_file or not lines:
        answer_of_file, lines_of_file = _status_of_file(_config(run, keys_file), now)
        answer, lines = {**answer_of_file, **answer}, [*lines_of_file, *lines]
    _print(run, answer, "\n".join(lines))


def _status_of_file(config: Config, now: float) -> tuple[dict[str, Any], list[str]]:
    """Return the ids and ages of the keys in ``keys_file``, for ``--json`` and as lines of text."""
    keys = read_keys(config.keys_file, config.cell)
    answer: dict[str, Any] = {"file": config.keys_file, "cell": keys.cell}
    if isinstance(keys, CellKeys):
        answer["secrets"] = [{"id": one.id, "age_s": round(now - one.created_at, 1)} for one in keys.secrets]
        answer["revoked_nodes"] = [
            {"node": name, "ids": one.ids, "age_s": round(now - one.revoked_at, 1)}
            for name, one in keys.revoked_nodes.items()
        ]
        answer["revoked_secrets"] = [
            {"id": key_id, "age_s": round(now - at, 1)} for key_id, at in keys.revoked_ids.items()
        ]
        lines = [f"{config.keys_file}: secrets of cell {keys.cell}"]
        lines += [f"secret {one['id']}, {span_text(one['age_s'])} old" for one in answer["secrets"]]
        lines += [
            f"revoked: keys of node {one['node']} of {', '.join(one['ids'])}, {span_text(one['age_s'])} ago"
            for one in answer["revoked_nodes"]
        ]
        lines += [f"revoked: secret {one['id']}, {span_text(one['age_s'])} ago" for one in answer["revoked_secrets"]]
    else:
        answer["nodes"] = {name: [key.id for key in own] for name, own in keys.nodes.items()}
        lines = [f"{config.keys_file}: keys of nodes of cell {keys.cell}"]
        lines += [f"node {name}: keys of {', '.join(ids)}" for name, ids in answer["nodes"].items()]
    return answer, lines


def _require_node(name: str, keys: CellKeys, *, is_node: bool) -> None:
    """Raise ``UsageError`` unless a name is that of a node. Else a mistyped id would revoke a node."""
    in_force = ", ".join(one.id for one in keys.secrets)
    if not re.fullmatch(NODE_NAME_PATTERN, name):
        raise click.UsageError(
            f"{name!r} is neither the id of a secret in force nor the name of a node; the ids are {in_force}"
        )
    if re.fullmatch(KEY_ID_PATTERN, name) and not is_node:
        fault = "is revoked already" if name in keys.revoked_ids else "is not in force"
        raise click.UsageError(
            f"the secret {name} {fault}; give one of {in_force}, or add --node if a node has the name {name}"
        )


def _print(run: Run, answer: dict[str, Any], text: str) -> None:
    if run.as_json:
        run.print_json(answer)
    else:
        run.out.print(text, markup=False, soft_wrap=True)


for _step in (init, node, rotate, revoke, status):
    command.add_command(_step)
