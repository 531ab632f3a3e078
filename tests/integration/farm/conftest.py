"""Fixtures of these tests."""

from tests.farm_home import database, database_template, driver, farm_home, model

__all__ = ["database", "database_template", "driver", "farm_home", "model"]
