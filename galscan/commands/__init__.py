"""The public functions: each uses the packages below, and writes their report."""
