"""Features that can be injected: prior, measurement and injection of each."""
