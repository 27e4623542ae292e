"""One API request: build it, send it within the limits, retry it, parse the response."""
