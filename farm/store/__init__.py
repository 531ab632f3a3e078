"""Artifacts: where they are kept, found, verified, collected."""
