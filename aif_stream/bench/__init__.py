"""Performance as verbs and scripts: ``aif bench``, benchmarks/*.py. Each prints what it compared with, on what."""
