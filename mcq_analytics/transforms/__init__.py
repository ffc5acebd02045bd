"""The definitions of SPEC section 2 in Spark: pure functions of DataFrames, one module a fact.

Neither Dagster nor a database is known here. The functions are right on whole base tables and on
those rows of them that belong to some keys of a fact. Inputs have the columns of SPEC section 1,
times as UTC timestamps, options as strings, ids as integer, bigint or string. Rows without their
ids or their time are not among them: readers leave those out and count them.
"""
