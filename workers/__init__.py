"""Celery nodes pinned to devices and hosts: the only package that knows both the farm and the engine."""
