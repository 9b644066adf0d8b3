"""The database design: one row per node, and the heads of the partitions, in MariaDB, PostgreSQL or SQLite.

Imported only if a database is used: the process of a scheduler that reads memcached contains no SQLAlchemy.
"""
