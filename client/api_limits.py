"""How much a call of the local service may carry; both ends keep to it."""

MOST_BYTES = 8 << 20
"""Of a message, either way."""
MOST_EVENTS = 1_000
"""Events recorded at a time."""
MOST_CANDIDATES = 100_000
"""Candidates of a recommendation."""
LONGEST_LIST = 10_000
"""Items of a recommendation."""
