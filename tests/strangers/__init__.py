"""Files and tables as strangers have them: each is read rightly, or refused in one line."""
