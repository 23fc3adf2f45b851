"""The version of qbench, on the ground floor, since records and reports name it."""

__version__ = "0.2.0"
