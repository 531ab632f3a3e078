"""Revisions, numbered; one head."""
