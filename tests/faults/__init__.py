"""Faults, injected in numbers: kills, damaged files, hostile servers and archives.

`python -m tests.faults` prints how each ended; pytest does not collect it. What one of
these faults taught is held by a test in tests/workshop.
"""
