"""Samples for a model: read from what the user has, and checked against the graph's inputs."""
