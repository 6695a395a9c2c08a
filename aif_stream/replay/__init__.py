"""Replaying a request log: the tape, the schedule, the player, the comparison, the report. Apart from serving."""
