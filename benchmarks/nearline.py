"""`aif bench nearline` as a script: see aif_stream/bench/nearline.py."""

from aif_stream.bench.nearline import main

if __name__ == "__main__":
    main()
