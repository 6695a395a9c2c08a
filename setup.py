"""The optional C library of aif_stream/kernels; everything else is in pyproject.toml.

Without a compiler the build goes on with a warning, and the kernels run on numpy.
"""

from setuptools import Extension, setup

SOURCES = (
    *("distinct", "gather", "ids", "items_encode", "items_read", "ranking"),
    *("request_body", "score", "slots", "tiers", "writes_pack"),
)

setup(
    ext_modules=[
        Extension(
            "aif_stream.kernels._native",
            sources=[f"aif_stream/kernels/{name}.c" for name in SOURCES],
            depends=[f"aif_stream/kernels/{name}.h" for name in ("score", "score_level", "items", "json_scan")],
            # No -march: tiers.c and score.c choose their instructions at run time. Products are fused into sums where
            # the instructions have that (c11 alone would forbid it).
            extra_compile_args=["-O3", "-std=c11", "-ffp-contract=fast"],
            optional=True,
        )
    ]
)
