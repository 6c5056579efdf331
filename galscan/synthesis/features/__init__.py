"""Features that are injected: what each looks like, how it is measured, and what it does to light."""
