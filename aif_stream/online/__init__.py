"""Request → answer: pin a version, user side beside retrieval, join, score, top k, and say what was missing."""
