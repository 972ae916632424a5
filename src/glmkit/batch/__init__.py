"""Files of requests: rows to jobs, output that continues after a kill."""
