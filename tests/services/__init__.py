"""Real memcached and RabbitMQ servers, private to one test run or one benchmark."""
