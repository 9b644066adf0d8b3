"""RabbitMQ, through py-amqp: deliveries are pushed, publishes are confirmed, and queues fail over between consumers.

``connection`` is one AMQP connection, ``messages`` publishes on it, ``queues`` declares and inspects. On these build
the sessions: ``consumer`` (with ``publish_connection``), ``publisher`` and ``orders``; ``session`` offers them all.
"""
