"""Consumers: take events from the broker, fold them, write the designs, and only then ack."""
