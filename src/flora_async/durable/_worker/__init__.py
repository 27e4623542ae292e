"""The work on orders: claim them, send each once, wait for its run, record its end."""
