"""Fixtures of these tests."""

from tests.farm_home import database_template, farm_home, model

__all__ = ["database_template", "farm_home", "model"]
