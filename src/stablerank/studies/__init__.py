"""Studies: a question, its rules and its cells as data, locked before there are results and judged without a hand."""
