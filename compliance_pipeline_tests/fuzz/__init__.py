"""What comes from outside, broken in every way that hypothesis thinks of.

A few seconds a target, the same examples each time. For hours, with new ones, and the seed printed where one fails:

    FUZZ_EXAMPLES=1000000 .venv/bin/python -m pytest compliance_pipeline_tests/fuzz
"""
