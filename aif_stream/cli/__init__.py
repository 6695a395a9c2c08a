"""The command line: one file per verb. Parse → settings → role or call → exit code."""
