"""A policy as a bundle that decides without training code."""
