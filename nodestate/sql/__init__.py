"""The database design: a row for each node, heads beside them, in MariaDB, PostgreSQL or SQLite by SQLAlchemy.

Imported only where a database is used: a scheduler that reads memcached has nothing of SQL in its process.
"""
