"""Placement tried on recorded and generated work, with a clock that jumps from event to event.

``python -m farm.replay`` runs the scheduler's own :func:`farm.placement.place` and the farm's own predictions over a
trace and says how long the work took, who waited, and how far that is from what no schedule can beat.
"""
