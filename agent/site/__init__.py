"""One site as ONE pure machine: membership, catalog, jobs, models and discovery, composed."""
