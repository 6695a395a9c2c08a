"""``python -m aif_stream`` is ``aif``."""

from aif_stream.cli import main

main()
