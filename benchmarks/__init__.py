"""Measurements that are run by hand; what they print is not a test."""
