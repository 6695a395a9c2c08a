"""The optional C library of aif_stream/kernels; everything else is in pyproject.toml.

Without a compiler the build goes on with a warning, and the kernels run on numpy.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "aif_stream.kernels._native",
            sources=[
                f"aif_stream/kernels/{name}.c" for name in ("distinct", "gather", "ranking", "score", "slots", "tiers")
            ],
            depends=["aif_stream/kernels/score.h", "aif_stream/kernels/score_level.h"],
            # No -march: tiers.c and score.c choose their instructions at run time. Products are fused into sums where
            # the instructions have that (c11 alone would forbid it).
            extra_compile_args=["-O3", "-std=c11", "-ffp-contract=fast"],
            optional=True,
        )
    ]
)
