"""A generated project on several hosts: links that are cut, hosts that vanish, Sentinels."""
