"""Plain values and contracts shared by all layers: specs, plans, rows, statistics, messages, errors."""
