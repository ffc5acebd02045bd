"""The definitions of docs/spec.md §2 in Spark: pure functions of DataFrames.

No Dagster and no database here. `student_tests` computes what one student did in one test, for all
three facts; `valid_answers`, `outcomes` and `sittings` have its steps. The functions are correct on
whole base tables, and on all rows of some students' tests. Inputs have the columns of docs/spec.md
§1, times as UTC timestamps, options as strings, ids as integer, bigint or string. Rows without an
id or a time must have been left out.
"""
