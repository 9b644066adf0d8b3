"""Tests beside an installed Nova, with MariaDB and memcached: `make test-nova`."""
