"""Runs, sweeps and services under load and fire."""
