"""The only place for tolerances: float32, relative to the largest value compared with.

They are not loosened to make a test pass. If a comparison fails, find the operation that differs.
"""

LAYER = 1e-5
MODEL = 5e-5
