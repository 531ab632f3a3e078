"""A simulated Cloud AI SDK, installed as a directory like the real one. Imports nothing else of ours."""
