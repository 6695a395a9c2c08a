"""The optional C library of aif_stream/kernels; everything else is in pyproject.toml.

Without a compiler the build goes on with a warning, and the kernels run on numpy.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "aif_stream.kernels._native",
            sources=[f"aif_stream/kernels/{name}.c" for name in ("gather", "slots", "tiers")],
            # No -march: tiers.c chooses its instructions at run time.
            extra_compile_args=["-O3", "-std=c11"],
            optional=True,
        )
    ]
)
