"""The command line: options, and the public function that each command calls."""
