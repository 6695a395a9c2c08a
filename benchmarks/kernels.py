"""`aif bench kernels` as a script: see aif_stream/bench/kernels.py."""

from aif_stream.bench.kernels import main

if __name__ == "__main__":
    main()
