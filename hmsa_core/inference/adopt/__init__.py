"""Choosing how networks of other people are used: classes, input, scales, combination, on some labelled images."""
