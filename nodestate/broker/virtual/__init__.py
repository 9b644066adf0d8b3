"""kombu's virtual transports, which emulate AMQP: ``memory://`` in one process, and Redis.

They are polled, and a message is in its queue when the publishing call returns. ``connection`` is one connection,
``memory`` the queues of ``memory://``, ``queues`` declares and inspects. On these build the sessions: ``consumer``,
``publisher`` and ``orders``; ``session`` offers them all.
"""
