"""The few compiled loops, each with a plain numpy twin and a test that both agree.

`slots`: key -> slot table; `tiers`: SimTier histogram over packed signatures; `gather`: rows of
an arena by slot; `score`: rows -> scores, tiers included (docs/decisions/0011-one-kernel-scores.md).
Why C: docs/decisions/0003-kernels-in-c.md.
"""
