"""Event → row: the Faust app, the hot lanes, rebuilds, dead letters, and the roll-out of a version.

``role.serve_nearline(settings, stop)`` is the role; ``rollout`` is what ``aif model`` calls.
"""
