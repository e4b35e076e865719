"""A real Apache Kafka broker for one machine: development, the demo, tests. Production brings its own cluster."""
