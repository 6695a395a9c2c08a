"""`aif bench rank` as a script: see aif_stream/bench/rank.py."""

from aif_stream.bench.rank import main

if __name__ == "__main__":
    main()
