"""The store: the adapter to memcached, and the head and keys that all designs share."""
