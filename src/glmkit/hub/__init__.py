"""Model hubs: names, caches, downloads. Data only; nothing that is downloaded is run."""
