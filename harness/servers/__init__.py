"""Real servers that a test or a benchmark owns: start, stop, kill and pause them on a port that stays the same.

Each server is a program of this machine. memcached and RabbitMQ may also be containers: if the program is not installed
but Docker answers, the server runs in a container. Databases never run in containers: started by root, they run as
the users that their Debian packages created. Every server listens on 127.0.0.1 only and is ended by its process or
container id, never by name, so a memcached that a developer runs on the same machine is not affected.

    stopped --start()--> running --stop() or kill()--> stopped
                         running --pause()--> paused --resume()--> running

``close()`` ends the server for good and removes its files; a server is a context manager that does so. ``stop()``
and ``kill()`` keep the files, so that the durable queues of a RabbitMQ are there again after ``start()``.
"""

from harness.servers.errors import ServerFailedError, ServerMissingError
from harness.servers.mariadb import MariadbServer
from harness.servers.memcached import MemcachedServer
from harness.servers.pgbouncer import PgbouncerServer
from harness.servers.postgres import PostgresServer
from harness.servers.programs import find_program, free_ports, make_folder, require_program, version_of
from harness.servers.rabbit_cluster import RabbitCluster
from harness.servers.rabbitmq import RabbitServer
from harness.servers.redis import RedisServer
from harness.servers.server import DATABASE, USER, ProbedServer, Server

__all__ = [
    "DATABASE",
    "USER",
    "MariadbServer",
    "MemcachedServer",
    "PgbouncerServer",
    "PostgresServer",
    "ProbedServer",
    "RabbitCluster",
    "RabbitServer",
    "RedisServer",
    "Server",
    "ServerFailedError",
    "ServerMissingError",
    "find_program",
    "free_ports",
    "make_folder",
    "require_program",
    "version_of",
]
