"""Any training command on a card that is not there: started as it is, followed from inside, and recorded.

`agent` runs in the processes of the command and imports nothing but Python's own library and torch; `site` is
the folder on PYTHONPATH by which they find it. The other modules run in qbench.
"""
