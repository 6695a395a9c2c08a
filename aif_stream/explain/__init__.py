"""Beside the request: why an answer's scores are what they are, worked out from the facts of that answer."""
