"""What runs in the separate process, with an application's own code: the standard library and Jinja only.

`program.py` starts it. It makes this package importable there without running the `__init__` of the packages
above it, which import what a start has no time for (pydantic); nothing in here may import more of the package than
its errors.
"""
