"""``calibrate``: measuring a pair on this machine with this data."""
