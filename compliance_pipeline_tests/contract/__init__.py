"""Contracts that the wire is checked against: both profiles and the events as data; what checks by them; tests."""
