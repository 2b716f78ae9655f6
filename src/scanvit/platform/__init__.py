"""The services that training is tracked in and runs on: MLflow with PostgreSQL and an object store, Ray, Jupyter, monitoring.

``settings`` is the one file that says where they listen and with which secrets; ``compose`` drives containers, ``native`` plans the same
services as plain processes under the ``supervisor``; ``health`` asks each through its own protocol; ``backup`` takes their data out and in.
"""
