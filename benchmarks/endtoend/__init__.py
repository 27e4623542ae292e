"""Time from the first order to the last output on disk, with each client, under a rate limit."""
