"""Comparisons: method against method, and now against before."""

import sys

import qbench

# So that qbench.compare(...) is the function of notebooks, too.
sys.modules[__name__].__class__ = qbench.CallablePackage
