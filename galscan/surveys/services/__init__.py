"""Catalogs and cutouts from the services of archives, by a rate-limited, retrying HTTP client."""
