"""Servers for development, demos and tests: a Kafka-protocol broker, Redis, and a real Apache Kafka on loopback.

Nothing here is for production. Each server is an async context manager that listens on 127.0.0.1 only.
"""
