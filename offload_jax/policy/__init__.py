"""Policies: networks, whole episodes with them, and decisions of a trained one."""
