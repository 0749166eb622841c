"""Tasks in lanes: see tasks.py and lanes.toml."""
