"""Contracts that the wire is checked against: the guide's endpoints as data, and what checks a body by them."""
