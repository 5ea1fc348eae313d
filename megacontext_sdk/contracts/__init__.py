"""One abstract base class per role. Arrays are numpy at every boundary; shapes in docstrings.

Letters: B batch, T tokens, N nodes, K block (32), E entries, S gist slots, D width, R rows.
"""
