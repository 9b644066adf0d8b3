"""Creates the tables of heads and nodes.

It does not use ``schema``, so that later changes of the schema do not change it.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

VALUE_BYTES = 4 * 1024 * 1024
INNODB: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}


_bytes = sa.LargeBinary(VALUE_BYTES).with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def _name(chars: int) -> sa.types.TypeEngine[str]:
    exact = mysql.VARCHAR(chars, charset="ascii", collation="ascii_bin")
    return sa.String(chars).with_variant(exact, "mysql", "mariadb")


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "nodestate_heads",
        sa.Column("key", _name(250), primary_key=True),
        sa.Column("value", _bytes, nullable=False),
        sa.Column("cas", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, index=True),
        **INNODB,
    )
    op.create_table(
        "nodestate_nodes",
        sa.Column("place", _name(64), primary_key=True),
        sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", _name(200), nullable=False, index=True),
        sa.Column("incarnation", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("reported_at", sa.Double(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        sa.Column("gone", sa.Boolean, nullable=False),
        sa.Column("commit_offset", sa.BigInteger, nullable=False),
        sa.Column("record", _bytes, nullable=False),
        sa.Index("nodestate_nodes_commit", "place", "epoch", "commit_offset"),
        **INNODB,
    )


def downgrade() -> None:
    """Remove both tables."""
    op.drop_table("nodestate_nodes")
    op.drop_table("nodestate_heads")
