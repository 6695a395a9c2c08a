"""Drills: break the running system on real Apache Kafka and Redis, then compare every row with the truth."""
