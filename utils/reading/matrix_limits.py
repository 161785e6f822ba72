"""What a matrix of a data set may hold at the most.

Numbers alone, for the commands that must start at once.
"""

LARGEST = 2**31 - 1  # rows or columns: their ids are kept in 4 bytes
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
FEATURE_MAX = 1e15  # a row of such numbers still has a length in float32
