"""Grading of candidates by people: sampling, grade book, web page, labels for training."""
