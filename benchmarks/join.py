"""`aif bench join` as a script: see aif_stream/bench/join.py."""

from aif_stream.bench.join import main

if __name__ == "__main__":
    main()
