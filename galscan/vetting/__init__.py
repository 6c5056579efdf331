"""People grade candidates: the sample, the grade book, the page."""
