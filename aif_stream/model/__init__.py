"""The net: item side, user side, scorer, their joint form, and the artefact of a version.

Letters: N items of a batch, R requests, B candidates, L long history, S short history, D width,
E = 2D embedding width, K bridges, W signature bits, T tiers, H first hidden layer, V content width,
C categories.
"""
