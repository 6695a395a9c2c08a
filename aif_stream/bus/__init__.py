"""Kafka: topic contracts, typed producer and consumer, publisher, dead letters. The only importer of aiokafka.

Topics are named by their base name everywhere ("aif.item-updates"); the deployment's prefix is put on here.
"""
