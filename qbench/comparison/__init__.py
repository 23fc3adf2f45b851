"""Comparisons: method against method, and now against before."""
