"""Waiting for runs: one poller for all runs of a client."""
