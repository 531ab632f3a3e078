"""Hosts, devices and nodes."""
