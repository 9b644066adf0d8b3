"""The store: the adapter to memcached and what every design keeps there."""
