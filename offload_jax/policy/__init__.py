"""Policies: the network, whole episodes with it, and decisions of a trained one."""
