"""FLORA's API resources, as attributes of the client."""
