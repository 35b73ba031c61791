"""Mutation testing: which decisions of the code are held by no test."""
