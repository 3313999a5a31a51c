"""What was done to a run or a file on purpose, and what it cost; `python -m tests.faults` prints the table.

A test counts what it tried and what was lost with the fixture `fault` (conftest.py); the table is the sum.
"""
