"""What runs in the separate process, with an application's own code: the standard library and Jinja only.

Its modules are found in this folder itself, so that a start imports nothing else of this package.
"""
