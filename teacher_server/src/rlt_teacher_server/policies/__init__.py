"""Versions of the teacher: which there are, which one a request gets, and how one takes the place of another."""
