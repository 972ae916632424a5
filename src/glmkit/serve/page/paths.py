"""Requests that are the page's own."""

# What a browser asks for while the page is open; the rest of Gradio's routes (uploads, files, descriptions of its API)
# is closed.
_FILES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json")
FOLDERS = ("/assets/", "/static/", "/svelte/")
JOIN, DATA = "/gradio_api/queue/join", "/gradio_api/queue/data"


def is_page_file(method: str, path: str) -> bool:
    """True for a part of the page that is the same for everybody. It needs no key, for the page itself asks for one."""
    return method in ("GET", "HEAD") and (path in _FILES or path.startswith(FOLDERS))


def is_page_path(method: str, path: str) -> bool:
    """True for a request that belongs to the page: its files, and the queue by which it asks and hears."""
    return is_page_file(method, path) or (method, path) in (("POST", JOIN), ("GET", DATA))
