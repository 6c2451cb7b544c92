"""Order index: release time and place in one number, by which all of a user's events stand in order."""

PLACE_BITS = 11
"""order_index is released_at in µs, then the place among a user's events of that µs; 63 bits last until 2112."""


def released_us(order_index: int) -> int:
    """Return the release time that an order_index tells, µs."""
    return order_index >> PLACE_BITS


def first_index(released_us: int) -> int:
    """Return the lowest order_index of a release time, µs."""
    return released_us << PLACE_BITS
