"""What synthetic galaxies bring, beside other remedies for a rare class."""
