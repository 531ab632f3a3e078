"""Fixtures of these tests."""

from tests.s3_server import bucket, remote, s3_server

__all__ = ["bucket", "remote", "s3_server"]
