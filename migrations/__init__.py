"""Alembic's environment and revisions of the farm's database."""
