"""Settings: one frozen ``Config``, passed to every part. No other module reads the environment."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from nodestate.errors import ConfigError
from nodestate.masking import MASK, safe_text, safe_url
from nodestate.model.inventory_ceilings import CEILING_PATTERN
from nodestate.model.partitioning import BUCKETS_COUNT
from nodestate.model.type_info import build_type_info
from nodestate.ports import MAX_TTL_S
from nodestate.ports.tls import TlsFiles, client_context
from nodestate.setting_files import read_secret, require_secret, require_trusted
from nodestate.setting_values import allowed_values

ENV_PREFIX = "NODESTATE_"
DEFAULT_FILES = ("nodestate.toml", "/etc/nodestate/nodestate.toml")

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]

AuthMode = Annotated[str, Meta(pattern=r"\A(off|accept|warn|require)\Z")]

Url = Annotated[str, "a URL, which may contain a password"]
Password = Annotated[str, "a password"]

DESIGN_NAMES: Final = (
    "journal",
    "snapshot",
    "sql",
    "journal_replica",
    "snapshot_replica",
    "journal_b",
    "snapshot_b",
)
REPLICATED_DESIGNS: Final = ("journal", "snapshot")
LEASE_RENEWALS_COUNT: Final = 5
"""Number of renewals that may be late or lost before a head expires."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of a cell and of the processes in it.

    The TOML file uses the names below. The environment uses the same names in capitals after ``NODESTATE_``.
    """

    broker: Url = "memory://"
    """URL of the message broker, in kombu's form: amqp://user:password@host:5672//, memory://, redis://…"""
    broker_ca: str = ""
    """PEM file with the authorities that may sign the broker's certificate (amqps, rediss). Empty: the system's."""
    broker_cert: str = ""
    """PEM file with the certificate that this process presents to the broker. Empty: none."""
    broker_key: str = ""
    """PEM file with the private key of broker_cert. Empty: it is in the same file."""
    store: Url = "memory://"
    """memcached://host:port,host:port or memory://. Partition p is stored on server p modulo their number.

    memcacheds:// is memcached with TLS, and memcached+unix:///path,/path names unix sockets.
    """
    store_ca: str = ""
    """PEM file with the authorities that may sign the certificates of memcached servers. Empty: the system's."""
    store_cert: str = ""
    """PEM file with the certificate that this process presents to memcached servers. Empty: none."""
    store_key: str = ""
    """PEM file with the private key of store_cert. Empty: it is in the same file."""
    store_user: str = ""
    """User for memcached servers with an authentication file (-Y). Empty: no login."""
    store_password: Password = ""
    """Password of store_user."""
    store_b: Url = ""
    """Other memcached servers, for a move of the cell: the designs journal_b and snapshot_b are stored there."""
    sql: Url = ""
    """SQLAlchemy URL of the database for the design sql; empty if it is not used."""
    cell: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,24}\Z")] = "cell1"
    """Name of the cell: one independent deployment with its own keys, exchange and queues."""
    partitions: Annotated[int, Meta(ge=1, le=BUCKETS_COUNT)] = 8
    """Number of partitions of a new cell; later the control record has the number. Each has one owner at a time."""
    designs: Annotated[tuple[str, ...], Meta(min_length=1)] = ("journal", "snapshot")
    """The designs that consumers write, separated by commas, such as journal,snapshot or sql."""
    replicas: Annotated[int, Meta(ge=0, le=2)] = 0
    """Number of servers of store that have each partition and claim record. 0: 2 if store names several, otherwise 1.

    2 adds the designs journal_replica and snapshot_replica to a new cell; the option --design of consume names all
    designs itself. For a running cell, prepare them instead: it keeps the designs of its control record.
    """
    read_design: str = "snapshot"
    """The design that readers read if the cell has no control record."""
    plugins: tuple[str, ...] = ("*",)
    """The packages whose filters, weighers and sources may be loaded, separated by commas; * for all installed ones."""
    inventory_ceilings: tuple[Annotated[str, Meta(pattern=rf"\A{CEILING_PATTERN}\Z")], ...] = ()
    """Largest believable capacities, separated by commas: VCPU=512, or for names of nodes gpu-*/VCPU=1024.

    Schedulers place no instance on a node that reports more. The first one that fits a node and a class counts.
    """
    state_dir: str = ""
    """Directory of the agents' incarnation files. Empty: ~/.local/state/nodestate, for root /var/lib/nodestate."""

    auth_events: AuthMode = "off"
    """Authentication of events: off, accept, warn or require; docs/concepts/security.md describes them."""
    auth_orders: AuthMode = "off"
    """Authentication of orders and their answers: off, accept, warn or require."""
    auth_store: AuthMode = "off"
    """Authentication of the values in memcached: off, accept, warn or require."""
    auth_control: AuthMode = "off"
    """Authentication of the control record: off, accept, warn or require. Agents do not read the record."""
    control_keys_file: str = ""
    """File of the operators' public keys, from nodestate key init --operator, for all but agents."""
    operator_key_file: str = ""
    """File of the operators' private keys, for the commands nodestate design and nodestate key of operators."""
    keys_file: str = ""
    """File of keys: the cell's, from nodestate key init, for all processes but agents; a node's own for its agent."""

    queue_type: Annotated[str, Meta(pattern=r"\A(classic|quorum)\Z")] = "classic"
    """Type of RabbitMQ's queues, classic or quorum. A quorum queue survives the loss of a broker node."""
    prefetch: Annotated[int, Meta(ge=1, le=65535)] = 2000
    """Largest number of unacknowledged messages per partition that a consumer holds."""
    batch_events: Annotated[int, Meta(ge=1, le=100_000)] = 2000
    """A consumer writes a batch when it has this many events …"""
    flush_s: Positive = 0.05
    """… or this many seconds after the first event of the batch."""
    confirm_window: Count = 1000
    """Largest number of publishes that an agent sends without waiting for their confirms."""
    broker_heartbeat_s: Annotated[int, Meta(ge=1)] = 4
    """Interval of AMQP heartbeats, in seconds. A frozen peer is noticed after two to three of them."""
    broker_timeout_s: Positive = 5.0
    """Longest time in seconds for a connect to the broker, or for a call that waits for its reply."""

    renew_s: Positive = 1.0
    """Interval in seconds at which an owner renews its partitions, also without events."""
    standby_s: Positive = 3.0
    """Seconds that a member waits before it subscribes to the partitions of other members, as their standby."""
    claim_ttl_s: Annotated[float, Meta(ge=5, le=3600)] = 30.0
    """Seconds after which a scheduler's claim on a node expires if the agent does not confirm it."""
    answer_timeout_s: Positive = 5.0
    """Seconds that a scheduler waits for an agent's answer before it tries another node."""
    heartbeat_s: Positive = 10.0
    """Interval in seconds at which an agent sends a sign of life for each node."""
    resync_jitter_s: Annotated[float, Meta(ge=0)] = 5.0
    """Agents spread their answers to a resync request over this many seconds."""
    store_timeout_s: Positive = 1.0
    """Longest time in seconds for a memcached server's reply."""
    sql_timeout_s: Positive = 10.0
    """Longest time in seconds for a database's reply to a statement."""
    lease_s: Annotated[float, Meta(ge=10, le=MAX_TTL_S)] = 86_400.0
    """Time to live in seconds of the items that an owner renews. A partition without an owner expires after it."""

    @property
    def settle_s(self) -> float:
        """Seconds after which an owner that started without stored nodes calls its partition complete.

        Every living node answers a resync request and sends two heartbeats within this time.
        """
        return self.resync_jitter_s + 2 * self.heartbeat_s

    @property
    def store_servers(self) -> tuple[str, ...]:
        """host:port of each server in ``store``."""
        return servers_of(self.store)

    @property
    def replicas_count(self) -> int:
        """Number of servers of ``store`` that have each partition and each claim record: 1 or 2."""
        return self.replicas or (2 if len(self.store_servers) > 1 else 1)

    @property
    def broker_tls(self) -> TlsFiles:
        """The files for TLS with the broker."""
        return TlsFiles("broker", self.broker_ca, self.broker_cert, self.broker_key)

    @property
    def store_tls(self) -> TlsFiles:
        """The files for TLS with memcached servers."""
        return TlsFiles("store", self.store_ca, self.store_cert, self.store_key)

    @property
    def broker_safe(self) -> str:
        """The broker's URL without the password, for messages."""
        return safe_url(self.broker)

    @property
    def urls(self) -> tuple[str, ...]:
        """The settings that are URLs, and may contain passwords."""
        return tuple(getattr(self, name) for name in URL_SETTINGS)

    @property
    def passwords(self) -> tuple[str, ...]:
        """The settings that are passwords."""
        return tuple(getattr(self, name) for name in PASSWORD_SETTINGS)

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return each setting and its value, without passwords."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return [(name, _shown(name, value)) for name, value in values.items()]


URL_SETTINGS: Final = tuple(field.name for field in msgspec.structs.fields(Config) if field.type == Url)
"""Settings that are URLs, and may contain passwords."""
PASSWORD_SETTINGS: Final = tuple(field.name for field in msgspec.structs.fields(Config) if field.type == Password)
"""Settings that are passwords."""
SECRET_SETTINGS: Final = (*URL_SETTINGS, *PASSWORD_SETTINGS)
"""Settings that are or may contain passwords. A file has the value of the setting NAME if NAME_file names it."""


build_type_info(Config)


def _shown(name: str, value: Any) -> Any:
    """The value of a setting without passwords."""
    if name in PASSWORD_SETTINGS and value:
        return MASK
    return safe_url(value) if name in URL_SETTINGS else value


MAX_PORT: Final = 65_535
_SOCKET_PATH: Final = re.compile(r"/[^\s,?#]{1,106}")
"""A path of a unix socket; Linux keeps at most 107 bytes."""
_SERVER: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")


def servers_of(url: str) -> tuple[str, ...]:
    """host:port or socket path of each memcached server in a URL, in the order that maps partitions to them.

    Empty for memory://.
    """
    scheme, mark, rest = url.partition("://")
    if scheme == "memory" and mark and "?" not in rest:
        return ()
    if scheme == "memcached+unix" and all(map(_SOCKET_PATH.fullmatch, rest.split(","))):
        return tuple(rest.split(","))
    servers = [_SERVER.fullmatch(server) for server in rest.removesuffix("/").split(",")]
    fits = all(server and int((server[2] or ":0")[1:]) <= MAX_PORT for server in servers)
    if scheme not in {"memcached", "memcacheds"} or not fits:
        raise ConfigError(
            f"store {safe_url(url)!r} is no URL of a store; give memcached://host:port[,host:port…], memcacheds://… "
            "for TLS, memcached+unix:///path[,/path…] or memory://. It has no user and no parameters after a question "
            "mark: the settings store_ca, store_cert, store_key, store_user and store_password are for these"
        )
    return tuple(server[1] + (server[2] or ":11211") for server in servers if server is not None)


def _similar_to(name: str) -> str:
    """Return a clause about the setting whose name is most similar; empty if none is."""
    import difflib  # noqa: PLC0415  only for an error

    close = difflib.get_close_matches(name, Config.__struct_fields__, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


class LoadedConfig(NamedTuple):
    """Settings, and where they came from."""

    config: Config
    """All settings."""
    sources: dict[str, str]
    """By setting that was given: its option, environment variable or file. Settings with their defaults are missing."""
    file: str
    """The settings file that was read; empty if there is none."""


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    file: str | Path | None = None,
) -> Config:
    """Load the settings. Arguments and errors: see ``load_with_sources``."""
    return load_with_sources(flags, environ=environ, file=file).config


def load_with_sources(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    file: str | Path | None = None,
) -> LoadedConfig:
    """Load the settings. Flags override the environment, and the environment overrides the TOML file.

    Args:
        flags: settings from the command line, by name. Settings with the value None are ignored.
        environ: the environment; None for the environment of this process. Empty variables count as unset. Variables
            that Kubernetes sets in every pod for a service called nodestate… are ignored.
        file: the TOML file. None for the file that ``NODESTATE_CONFIG`` names, or else the first of ``DEFAULT_FILES``
            that exists. The one in the current directory must be this user's own or root's.

    For each setting of ``SECRET_SETTINGS``, a source may instead give the name with ``_file`` appended: the path of a
    file that has the value.

    Raises:
        ConfigError: names the setting, its source and its value.
    """
    environ = os.environ if environ is None else environ
    path = file or environ.get(ENV_PREFIX + "CONFIG") or None
    if path is None:
        path = next((name for name in DEFAULT_FILES if Path(name).is_file()), None)
        if path == DEFAULT_FILES[0]:
            require_trusted(path)
    settings: dict[str, Any] = {}
    sources: dict[str, str] = {}
    secret_files: dict[str, str] = {}

    def add(name: str, value: Any, source: str, given: dict[str, str]) -> None:
        is_file = name.removesuffix("_file") in SECRET_SETTINGS and name not in SECRET_SETTINGS
        name = name.removesuffix("_file") if is_file else name
        if name not in Config.__struct_fields__:
            raise ConfigError(
                f"{source}: there is no setting {name!r}{_similar_to(name)}; give one of "
                f"{', '.join(Config.__struct_fields__)}, or a file by "
                f"{', '.join(f'{secret}_file' for secret in SECRET_SETTINGS)}"
            )
        if name in given:
            raise ConfigError(f"{given[name]} and {source} both give the setting {name}: remove one of them")
        given[name] = source
        secret_files.pop(name, None)
        if is_file:
            secret_files[name], value = str(value), ""
        if isinstance(value, str) and name in {"designs", "plugins", "inventory_ceilings"}:
            value = [part.strip() for part in value.split(",") if part.strip()]
        settings[name], sources[name] = value, source

    if path is not None:
        try:
            with Path(path).open(encoding="utf-8-sig") as opened:  # some editors begin a file with a BOM
                status, content = os.fstat(opened.fileno()), tomllib.loads(opened.read())
        except UnicodeDecodeError as error:
            raise ConfigError(f"settings file {path} is not UTF-8 ({error.reason} at byte {error.start})") from None
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"settings file {path}: {error}") from None
        given: dict[str, str] = {}
        for name, value in content.items():
            add(name, value, f"{path}, {name}" if name.endswith("_file") else str(path), given)
            if name in SECRET_SETTINGS and isinstance(value, str) and _shown(name, value) != value:
                require_secret(status, path, f"setting {name}")
    given = {}
    for variable, value in environ.items():
        name = variable.removeprefix(ENV_PREFIX).lower()
        if variable == ENV_PREFIX + name.upper() and name != "config" and value and not _is_service_link(name, value):
            add(name, value, variable, given)
    given = {}
    for name, value in (flags or {}).items():
        if value is not None:
            add(name, value, f"--{name.replace('_', '-')}", given)
    for name, secret_file in secret_files.items():
        settings[name] = read_secret(secret_file, sources[name])
    try:
        config = msgspec.convert(settings, Config, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("`$.")[2].rstrip("`").partition("[")[0]
        raise _out_of_range(name, settings[name], sources[name]) from None
    for name, source in sources.items():
        if isinstance(value := getattr(config, name), float) and not math.isfinite(value):
            raise _out_of_range(name, settings[name], source)
    unknown = [name for name in (*config.designs, config.read_design) if name not in DESIGN_NAMES]
    if unknown:
        raise ConfigError(
            f"{sources.get('designs', 'settings')}: no design {unknown[0]!r}; give one of {', '.join(DESIGN_NAMES)}"
        )
    if config.replicas_count > 1:
        if len(config.store_servers) < config.replicas_count:
            raise ConfigError(
                f"{sources.get('replicas', 'settings')}: replicas {config.replicas_count} needs as many memcached "
                "servers, and store names fewer: give store=memcached://host:port,host:port"
            )
        if config.replicas or not (flags or {}).get("designs"):
            more = (f"{name}_replica" for name in config.designs if name in REPLICATED_DESIGNS)
            config = msgspec.structs.replace(config, designs=tuple(dict.fromkeys((*config.designs, *more))))
    if config.lease_s < LEASE_RENEWALS_COUNT * config.renew_s:
        raise ConfigError(
            f"{sources.get('lease_s') or sources.get('renew_s')}: lease_s {config.lease_s:g} must be at least "
            f"{LEASE_RENEWALS_COUNT} times renew_s {config.renew_s:g}, or partitions expire between two renewals"
        )
    if config.answer_timeout_s > config.claim_ttl_s / 2:
        raise ConfigError(
            f"{sources.get('answer_timeout_s') or sources.get('claim_ttl_s')}: answer_timeout_s "
            f"{config.answer_timeout_s:g} must be at most half of claim_ttl_s {config.claim_ttl_s:g}, or claims expire "
            "before the answers to their orders arrive"
        )
    _ = config.store_servers
    if config.store_b:
        _ = servers_of(config.store_b)
    _check_tls(config.broker_tls, config.broker.split(";"), "amqps:// or rediss://", sources)
    _check_tls(config.store_tls, filter(None, (config.store, config.store_b)), "memcacheds://", sources)
    login = [config.store_user, config.store_password]
    if any(login) and any(len(part.split()) != 1 or part != part.strip() for part in login):
        raise ConfigError(
            f"{sources.get('store_user') or sources['store_password']}: store_user and store_password must both be "
            "given, without spaces: memcached takes no others"
        )
    return LoadedConfig(config, sources, str(path or ""))


def _check_tls(files: TlsFiles, urls: Iterable[str], needed: str, sources: Mapping[str, str]) -> None:
    """Raise ``ConfigError`` if files for TLS would have no effect, or cannot be used."""
    named = [f"{files.setting}_{part}" for part in ("ca", "cert", "key") if getattr(files, part)]
    if not named:
        return
    source = sources[named[0]]
    for url in urls:
        if url.strip().partition("://")[0] not in {"amqps", "rediss", "memcacheds", "memory"}:
            raise ConfigError(
                f"{source}: setting {named[0]} is for TLS, and {files.setting} {safe_url(url)!r} is without TLS: "
                f"give {needed}"
            )
    if files.key and not files.cert:
        raise ConfigError(f"{source}: setting {files.setting}_key is given without {files.setting}_cert: give both")
    try:
        client_context(files)
        if secret := files.key or files.cert:
            require_secret(Path(secret).stat(), secret, source)
    except OSError as error:
        raise ConfigError(f"{source}: {error}") from None


_SERVICE_LINK: Final = re.compile(
    r"(?:\w+_)?(?:service_host|service_port(?:_\w+)?|port_\d+_(?:tcp|udp|sctp)(?:_(?:proto|port|addr))?)"
)


def _is_service_link(name: str, value: str) -> bool:
    """True if Kubernetes set this variable, as NODESTATE_SERVICE_HOST or NODESTATE_BROKER_PORT=tcp://10.0.0.1:5672.

    A misspelt setting, such as NODESTATE_PORT=5672, is not such a variable: the value is no URL.
    """
    if name in Config.__struct_fields__:
        return False
    return bool(_SERVICE_LINK.fullmatch(name)) or (name.rpartition("_")[2] == "port" and "://" in value)


def _out_of_range(name: str, value: Any, source: str) -> ConfigError:
    """The error for a value that a setting cannot have."""
    value = _shown(name, value)
    shown = repr(safe_url(value)) if isinstance(value, str) else safe_text(repr(value))
    field = next(field for field in msgspec.structs.fields(Config) if field.name == name)
    allowed = allowed_values(msgspec.inspect.type_info(field.type))
    return ConfigError(f"{source}: setting {name} can't be {shown}; give {allowed}")
