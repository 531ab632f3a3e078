"""Fixtures of these tests."""

from tests.databases import each_database, empty_url, postgresql, postgresql_url

__all__ = ["each_database", "empty_url", "postgresql", "postgresql_url"]
